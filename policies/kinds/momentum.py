"""R2R's momentum and rolling strategies as one score and one threshold."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from policies.policy import Policy


class Momentum(Policy):
    """Escalate where memory * (mean entropy of the 8 positions before) + (1 - memory) * entropy is high.

    After "Roads to Rome" (2505.21600), whose momentum and rolling switches have two thresholds, between which the model
    that is writing goes on. Here the lower one is ``gap`` nats below ``threshold``: right after a token of the larger
    model (``since_large`` is 0, also before the first one) the score is higher by ``gap``. A ``memory`` of 1 is a
    rolling mean, 0 the plain entropy; without earlier positions the mean counts as the entropy. The paper's momentum
    averages decisions, without a window, on a variance of evidence; a score cannot average decisions, for these depend
    on its threshold.

    Raises ValueError for a memory outside [0, 1] or a negative gap.
    """

    kind = "momentum"

    def __init__(self, threshold: float = 2.0, memory: float = 0.7, gap: float = 0.0):
        if not 0 <= memory <= 1 or not 0 <= gap < math.inf:
            raise ValueError(f"memory and gap are {memory!r} and {gap!r}; they must be in [0, 1] and at least 0")
        super().__init__(("entropy", "mean_entropy", "since_large"), threshold)
        self.memory, self.gap = float(memory), float(gap)

    def _score(self, table: Tensor, hidden: Tensor | None) -> Tensor:
        entropy, before, since = table.unbind(-1)
        before = torch.where(before.isnan(), entropy, before)
        return self.memory * before + (1 - self.memory) * entropy + self.gap * (since == 0)

    def describe(self) -> str:
        mixture = f"{self.memory:g} of the mean entropy before it and {1 - self.memory:g} of its own"
        back = f", back below {self.threshold.item() - self.gap:.4g}" if self.gap else ""
        return f"escalate when {mixture} >= {self.threshold.item():.4g}{back}"

    def settings(self) -> dict[str, Any]:
        return {"memory": self.memory, "gap": self.gap}
