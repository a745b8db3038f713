"""Logistic regressions on the margin of the two best tokens, one for each place in a draft."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.kinds.learned import LearnedPolicy
from policies.kinds.logistic import Logistic
from policies.policy import Policy


class Margins(LearnedPolicy):
    """sigmoid(intercept[place] - slope[place] * margin); the margin is log p of the best token minus the second's.

    vLLM's adaptive verification estimates acceptance by it, with two numbers for each place in the draft. ``place`` is
    the number of tokens since the larger model was last called; those from ``places`` - 1 on share the last regression.
    A place without rows, or whose labels are all alike, uses a regression on all rows. It serves as the risk of
    ``Survival`` or of a hand-off. Learned: ``slope_`` and ``intercept_`` [places].

    Raises ValueError unless ``places`` is a whole number of at least 1.
    """

    kind = "margins"

    def __init__(self, places: int = 8, C: float = 1.0, threshold: float = 0.5):
        if type(places) is not int or places < 1:
            raise ValueError(f"places is {places!r}; it must be a whole number of at least 1")
        self.places, self.C = places, C
        super().__init__(("top1", "margin", "since_large"), threshold, None)

    def fit(self, x, y, weight=None, groups=None) -> Margins:
        """Fit columns x [n, 3] to soft labels y [n] in [0, 1]; the other arguments are those of ``Logistic.fit``."""
        rows = self._rows(x, y, weight, groups)
        margin, place = (part.numpy() for part in self._read(torch.from_numpy(rows.x)))
        pooled = self._line(margin, rows.y, rows.weight)
        lines = []
        for i in range(self.places):
            own = (place == i) & (rows.weight > 0)
            told_apart = own.any() and rows.y[own].max() > 0 and rows.y[own].min() < 1
            lines.append(self._line(margin[own], rows.y[own], rows.weight[own]) if told_apart else pooled)
        slope, intercept = torch.tensor(lines).unbind(-1)
        self.set_weights({"slope": slope, "intercept": intercept})
        return self

    def _line(self, margin: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
        """(slope, intercept) of one regression on the margin in nats."""
        one = Logistic(("margin",), self.C).fit(margin[:, None], y, weight)
        slope = float(one.coef_[0] / one.scale_[0])
        return -slope, float(one.intercept_ - slope * one.mean_[0])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"slope": (self.places,), "intercept": (self.places,)}

    def numbers(self) -> dict[str, Tensor]:
        return self.weights()

    def _require_fit(self) -> None:
        if self.slope_ is None:
            raise RuntimeError(f"this {self.kind} policy has no weights yet; call fit, or load one")

    def _read(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """The margin of log-probabilities [...], and its place [...]."""
        best, apart, since = table.unbind(-1)
        # float32 cannot tell a smaller second probability from 0; the margin is at most 16 nats.
        second = (best - apart).clamp(min=1e-7)
        return best.log() - second.log(), since.clamp(max=self.places - 1).long()

    scaling = Policy.scaling

    def _scaled(self, table: Tensor) -> Tensor:
        self._require_fit()
        return table

    def _score(self, table: Tensor, hidden: Tensor | None) -> Tensor:
        margin, place = self._read(table)
        return torch.sigmoid(self.intercept_[place] - self.slope_[place] * margin)

    def describe(self) -> str:
        return f"margins at {self.places} places: escalate when risk >= {self.threshold.item():.4g}"

    def settings(self) -> dict[str, Any]:
        return {"places": self.places}
