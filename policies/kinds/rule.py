"""Policies without weights: one feature against a threshold, always, and never."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from policies.policy import Policy


class Rule(Policy):
    """Escalate where a feature is high (``>=``) or low (``<=``), as in ``Rule("top1", 0.4, "<=")``.

    The constructor's threshold is in the feature's units, ``policy.threshold`` in the score's: the score of a ``<=``
    rule is minus the feature, for a score rises with the risk.
    """

    kind = "rule"

    def __init__(self, feature: str, threshold: float, direction: str = ">=", classes: Tensor | None = None):
        if direction not in (">=", "<="):
            raise ValueError(f"direction is {direction!r}; it must be '>=' or '<='")
        self._sign = 1.0 if direction == ">=" else -1.0
        super().__init__((feature,), self._sign * threshold, classes)
        self.feature, self.direction = feature, direction

    def _score(self, table: Tensor, hidden: Tensor | None) -> Tensor:
        return self._sign * table[..., 0]

    def layers(self) -> tuple[list[Tensor], bool]:
        sign = torch.full((1,), self._sign, device=self.threshold.device)
        return [sign, torch.zeros_like(sign)], False

    def describe(self) -> str:
        return f"escalate when {self.feature} {self.direction} {self._sign * self.threshold.item():.4g}"

    def settings(self) -> dict[str, Any]:
        return {"direction": self.direction}

    @classmethod
    def from_settings(cls, names: tuple[str, ...], settings: dict[str, Any]) -> Rule:
        if len(names) != 1:
            raise ValueError(f"a rule reads {len(names)} features; it must read one")
        return cls(names[0], 0.0, settings["direction"])

    @staticmethod
    def always() -> Policy:
        """Escalate everywhere: the larger model writes every token."""
        return Always()

    @staticmethod
    def never() -> Policy:
        """Escalate nowhere: the smaller model writes every token."""
        return Never()


class _Constant(Policy):
    """The same answer everywhere: the risk is infinite, so any finite threshold gives it."""

    risk: float

    def __init__(self):
        super().__init__((), 0.0)

    def _score(self, table: Tensor, hidden: Tensor | None) -> Tensor:
        return table.new_full(table.shape[:-1], self.risk)

    def describe(self) -> str:
        return f"{self.kind} escalate"


class Always(_Constant):
    """Escalate everywhere."""

    kind = "always"
    risk = math.inf


class Never(_Constant):
    """Escalate nowhere, not even at NaN logits: it reads none."""

    kind = "never"
    risk = -math.inf
