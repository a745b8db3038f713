"""A policy as plain data: each kind is a small network, a period or a constant."""

from __future__ import annotations

import json
from typing import Any

from policies.export.source import Source
from policies.features.table import FEATURES
from policies.policy import Policy
from policies.storage.files import short

FORMAT, VERSION = "decision-policy", 1
CARRIED = ("always", "never", "rule", "random", "periodic", "logistic", "mlp")
"""the kinds that the format can hold"""


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
    if policy.kind == "rule":
        return _linear(1.0 if policy.direction == ">=" else -1.0, 0.0)
    if policy.kind == "random":
        return _linear(-1.0, 1.0)
    return _learned(policy)


def _linear(weight: float, bias: float) -> dict[str, Any]:
    layers = [{"weight": [[weight]], "bias": [bias]}]
    return _network([0.0], [1.0], [False], layers, "identity", 0)


def _learned(policy: Policy) -> dict[str, Any]:
    weights = {name: short(value.tolist()) for name, value in policy.weights().items()}
    if policy.kind == "logistic":
        layers = [{"weight": [weights["coef"]], "bias": [weights["intercept"]]}]
    else:
        layers = [{"weight": weights[f"weight{i}"], "bias": weights[f"bias{i}"]} for i in range(len(policy.hidden) + 1)]
    optional = [FEATURES[name].optional for name in policy.names]
    width = policy.hidden_width_ if policy.needs_hidden else 0
    return _network(weights["mean"], weights["scale"], optional, layers, "sigmoid", width)


def _network(mean, scale, impute, layers, output: str, hidden_width: int) -> dict[str, Any]:
    return {
        "type": "network",
        "mean": mean,
        "scale": scale,
        "impute": impute,
        "layers": layers,
        "output": output,
        "hidden_width": hidden_width,
    }
