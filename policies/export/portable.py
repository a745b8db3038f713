"""A policy as plain data: each kind is a small network, a period or a constant."""

from __future__ import annotations

import json
from typing import Any

from policies.export.source import Source
from policies.policy import Policy
from policies.storage.files import short

FORMAT, VERSION = "decision-policy", 1
CARRIED = ("always", "never", "rule", "random", "periodic", "logistic", "mlp")  # the kinds that the format can hold


def document(source: Source) -> dict[str, Any]:
    """The policy of ``source`` as JSON takes it; ``policies.export.engines.portable_json`` documents the fields."""
    policy = source.policy
    return {
        "format": FORMAT,
        "version": VERSION,
        "kind": policy.kind,
        "role": source.role,
        "features": list(policy.names),
        "threshold": short(policy.threshold.item()),
        "score": _score(policy),
        "history": list(policy.history),
        "window": policy.window,
        "classes": None if policy.classes is None else policy.classes.tolist(),
        "description": policy.describe(),
        "length": source.length,
        "provenance": source.provenance(),
    }


def dumps(value: Any, indent: int | None = None) -> bytes:
    """JSON that every parser reads; ValueError for a number that is not finite."""
    return (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode()


def _score(policy: Policy) -> dict[str, Any]:
    if policy.kind in ("always", "never"):
        return {"type": "constant", "escalate": policy.kind == "always"}
    if policy.kind == "periodic":
        return {"type": "periodic", "every": policy.every}
    mean, scale, impute = (part.tolist() for part in policy.scaling())
    return {
        "type": "network",
        "mean": short(mean),
        "scale": short(scale),
        "impute": impute,
        "layers": [{"weight": weight, "bias": bias} for weight, bias in _layers(policy)],
        "output": "identity" if policy.kind in ("rule", "random") else "sigmoid",
        "hidden_width": policy.hidden_width_ if policy.needs_hidden else 0,
    }


def _layers(policy: Policy) -> list[tuple[list[list[float]], list[float]]]:
    """Weight [out, in] and bias [out] of each layer."""
    if policy.kind == "rule":
        return [([[1.0 if policy.direction == ">=" else -1.0]], [0.0])]
    if policy.kind == "random":
        return [([[-1.0]], [1.0])]
    weights = {name: short(value.tolist()) for name, value in policy.weights().items()}
    if policy.kind == "logistic":
        return [([weights["coef"]], [weights["intercept"]])]
    return [(weights[f"weight{i}"], weights[f"bias{i}"]) for i in range(len(policy.hidden) + 1)]
