"""A policy as plain data: every kind is a small network, a period or a constant."""

from __future__ import annotations

from typing import Any

import numpy as np

from policies.features.table import FEATURES
from policies.policy import Policy
from policies.storage.files import short

FORMAT, VERSION = "decision-policy", 1
CARRIED = ("always", "never", "rule", "random", "periodic", "logistic", "mlp")
"""The kinds that the format holds."""


def portable(policy: Policy, role: str = "handoff") -> dict[str, Any]:
    """``policy`` as JSON takes it; ``policies.export.engines.portable_json`` says what the fields mean."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "kind": policy.kind,
        "role": role,
        "features": list(policy.names),
        "threshold": short(policy.threshold.item()),
        "score": _score(policy),
        "history": list(policy.history),
        "window": policy.window,
        "classes": None if policy.classes is None else policy.classes.tolist(),
        "description": policy.describe(),
    }


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
    weights = {name: value.cpu().numpy() for name, value in policy.weights().items()}
    if policy.kind == "logistic":
        pairs = [(weights["coef"][None], weights["intercept"][None])]
    else:
        pairs = [(weights[f"weight{i}"], weights[f"bias{i}"]) for i in range(len(policy.hidden) + 1)]
    layers = [{"weight": _numbers(weight), "bias": _numbers(bias)} for weight, bias in pairs]
    optional = [FEATURES[name].optional for name in policy.names]
    width = policy.hidden_width_ if policy.needs_hidden else 0
    return _network(_numbers(weights["mean"]), _numbers(weights["scale"]), optional, layers, "sigmoid", width)


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


def _numbers(value: np.ndarray) -> list:
    return [_numbers(row) if row.ndim else short(row) for row in value]
