"""Policies that read no distribution: the baselines that a useful policy must beat."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from policies.policy import Policy


class Random(Policy):
    """Escalate a share ``rate`` in [0, 1] of positions at random: where the step's noise ``uniform`` < rate.

    The score is 1 - uniform, in (0, 1]. The threshold is one float above 1 - rate: another threshold is another rate.
    """

    kind = "random"

    def __init__(self, rate: float):
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"rate is {rate!r}; it must be in [0, 1]")
        # "score >= threshold" then excludes a score of 1 - rate, and a rate of 0 is exactly never.
        super().__init__(("uniform",), float(np.nextafter(np.float32(1.0 - rate), np.float32(2.0))))

    @property
    def rate(self) -> float:
        """The share of positions that it escalates."""
        return min(max(1.0 - self.threshold.item(), 0.0), 1.0)

    def _score(self, table: Tensor, hidden: Tensor | None) -> Tensor:
        return 1.0 - table[..., 0]

    def describe(self) -> str:
        return f"escalate {self.rate:.1%} of positions at random"

    @classmethod
    def from_settings(cls, names: tuple[str, ...], settings: dict[str, Any]) -> Random:
        return cls(rate=0.0)


class Periodic(Policy):
    """Escalate at positions 0, every, 2 * every ... of the answer; the score is 1 there and 0 elsewhere.

    Raises ValueError unless ``every`` is a whole number from 1 to 2**24 - 1.
    """

    kind = "periodic"

    def __init__(self, every: int):
        if isinstance(every, bool) or not isinstance(every, int) or not 1 <= every < 2**24:
            raise ValueError(f"every is {every!r}; it must be a whole number from 1 to 2**24 - 1, exact in float32")
        super().__init__(("position",), 0.5)
        self.every = every

    def _score(self, table: Tensor, hidden: Tensor | None) -> Tensor:
        return (table[..., 0] % self.every == 0).float()

    def describe(self) -> str:
        return f"escalate at every position that {self.every} divides"

    def settings(self) -> dict[str, Any]:
        return {"every": self.every}
