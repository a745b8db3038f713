"""The goal of a search, and what is best at it: a point of a curve, or the Pareto front of many."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna

LEAST_SPEEDUP = 1.05  # what is slower within a loss budget is not worth a second model


@dataclass(frozen=True)
class Goal:
    """A speedup to reach at the least loss, a loss not to exceed at the best speedup, or neither."""

    speedup: float | None = None
    budget: float | None = None

    @property
    def open(self) -> bool:
        """True if neither is given; the traces of the pair then decide it."""
        return self.speedup is None and self.budget is None

    def asked(self) -> dict[str, float]:
        """By the name of its option."""
        return {"target_speedup": self.speedup} if self.budget is None else {"quality_budget": self.budget}

    def violation(self, speedup: float, loss: float) -> float:
        """At most 0 where the goal is met."""
        return self.speedup - speedup if self.budget is None else loss - self.budget

    def value(self, speedup: float, loss: float) -> float:
        """The quantity to minimise among the points that meet the goal."""
        return loss if self.budget is None else -speedup

    def record(self, trial: optuna.Trial, speedup: float, loss: float) -> float:
        """Note what a trial found; returns its value."""
        trial.set_user_attr("speedup", speedup)
        trial.set_user_attr("loss", loss)
        trial.set_constraint("goal", self.violation(speedup, loss))  # write-once, so it comes last
        return self.value(speedup, loss)


def solve(curve: np.ndarray, goal: Goal, faster: float = 1.0, worse: float = 1.0) -> int | None:
    """Index of the point of ``curve`` [n, 2] (speedup, loss) that meets the goal best, None when none does.

    ``faster`` and ``worse`` are what a live run measured divided by what replay predicted.
    """
    points = [(speed * faster, loss * worse) for speed, loss in curve]
    met = [i for i, point in enumerate(points) if goal.violation(*point) <= 0]
    return min(met, key=lambda i: goal.value(*points[i])) if met else None


def pareto(points: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of ``points`` (speedup, loss) that no other beats in both, fastest first."""
    kept: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda p: (-p["speedup"], p["loss"])):
        if not kept or point["loss"] < kept[-1]["loss"]:
            kept.append(point)
    return kept
