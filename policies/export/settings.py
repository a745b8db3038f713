"""A policy as the two knobs that engines have: the most tokens of a draft, and a probability below which it ends."""

from __future__ import annotations

import math

import numpy as np

from policies.export.source import Source
from policies.policy import Policy


def why_not(source: Source, probability: str | None) -> str | None:
    """Why an engine with a threshold on ``probability`` (None: with none) cannot do what the policy does."""
    policy = source.policy
    if policy.kind == "never":
        return None
    if policy.kind == "always":
        return "it ends every draft before its first token; run the large model alone"
    if probability is None:
        return f"it ends drafts by {_read(policy)}, and this engine has a fixed draft length only"
    if policy.kind not in ("rule", "logistic"):
        return f"a {policy.kind} policy is no threshold, and this engine has one threshold on {probability!r}"
    if policy.names != (probability,):
        return f"it reads {_read(policy)}, and this engine compares {probability!r} alone with a threshold"
    limit = _limit(policy)
    if limit is None or not 0 < limit < 1:
        return f"it is no upper limit of {probability!r} in (0, 1): {policy.describe()}"
    return None


def threshold(policy: Policy) -> float | None:
    """The number that engines take: they end a draft where the probability is below it. None: never.

    Ours ends where it is at most the limit, so theirs is the next float32.
    """
    if policy.kind == "never":
        return None
    return float(np.nextafter(np.float32(_limit(policy)), np.float32(1)))


def _limit(policy: Policy) -> float | None:
    """x such that the policy says True where its one feature is at most x; None where it says so above."""
    risk = policy.threshold.item()
    if policy.kind == "rule":
        return -risk if policy.direction == "<=" else None
    slope = (policy.coef_ / policy.scale_).item()
    if slope >= 0 or not 0 < risk < 1:
        return None
    return policy.mean_.item() + (math.log(risk / (1 - risk)) - policy.intercept_.item()) / slope


def _read(policy: Policy) -> str:
    reads = [repr(name) for name in policy.names]
    return ", ".join([*reads, "the hidden state"] if policy.needs_hidden else reads) or "no feature"
