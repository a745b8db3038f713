"""Targets of engines that take settings only: a draft length and, for some, a probability below which a draft ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from policies.export.source import Source
from policies.export.target import Files, Target
from policies.policy import Policy

LENGTH_ONLY = "a fixed draft length (a policy of kind 'never', and --length)"


def setting_target(
    name: str,
    summary: str,
    write: Callable[[Source], Files],
    engine: tuple[str, str, str],
    probability: str | None = None,
    carries: str = LENGTH_ONLY,
    most: int | None = None,
    evidence: str = "run",
) -> Target:
    """A target for ``engine`` (distribution, versions from and to), which drafts at most ``most`` tokens.

    It ends a draft where the feature ``probability`` is below a threshold; None for an engine without a threshold.
    """

    def refuse(source: Source) -> str | None:
        if most is not None and source.length > most:
            return f"it drafts at most {most} tokens, not {source.length}; pass a smaller --length"
        return why_not(source, probability)

    return Target(name, summary, write, refuse, carries, ("stop",), probability, {engine[0]: engine[1:]}, evidence)


def why_not(source: Source, probability: str | None) -> str | None:
    """The reason why a threshold on ``probability``, or none, cannot decide as the policy does; None if it can."""
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
    """The probability below which the engine ends a draft; None for never.

    A policy ends a draft at its limit too, so the engine's number is the next float32.
    """
    if policy.kind == "never":
        return None
    return float(np.nextafter(np.float32(_limit(policy)), np.float32(1)))


def _limit(policy: Policy) -> float | None:
    """The value of its one feature up to which the policy says True; None if it says True above a value."""
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
