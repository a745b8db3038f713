"""The final correction of a threshold: texts that the policy writes at it, in batches, their time priced.

Replay evaluates a policy on texts that it did not write. The more of a text the small model writes, the surer it is of
itself, so that a policy tuned to 2x by replay may run at 3x, and a factor measured at one threshold is wrong at
another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from decoding import Backoff
from policies import Policy
from train.common import atomic
from train.common.generations import batches, write
from train.common.progress import track
from train.evaluation.live import LARGE, speedup
from train.quality.metric import QualityMetric
from train.replay.pricing import alone, handoff
from train.search.backoff import GRID, Search
from train.search.goal import Goal, solve

if TYPE_CHECKING:
    from train.common.job import Job

ROUNDS = 4
NEAR = 0.0101
"""of a quantile: about 2 % in speed"""


@dataclass
class Corrected:
    """Speed and loss by quantile as replay has them [201, 2], times factors known at a few quantiles."""

    replayed: np.ndarray
    factors: dict[float, tuple[float, float]] = field(default_factory=dict)
    """by quantile: speed and loss over replay's"""

    def at(self, quantile: float) -> np.ndarray:
        """[2] the factors at a quantile: between those known, or the nearest."""
        known = sorted(self.factors)
        columns = np.array([self.factors[q] for q in known]).T
        return np.array([np.interp(quantile, known, column) for column in columns])

    def knows(self, quantile: float) -> bool:
        """Whether factors were measured so near that a few prompts tell no difference."""
        return min(abs(quantile - known) for known in self.factors) <= NEAR

    def solve(self, goal: Goal) -> float | None:
        """The quantile that meets the goal best, None when none does."""
        i = solve(self.replayed * np.array([self.at(q) for q in GRID]), goal)
        return None if i is None else float(GRID[i])


@dataclass
class ThresholdProbe:
    """Measures a policy at a threshold: texts of the prompts fitted and tuned on, one line of ``path`` a threshold."""

    job: Job
    search: Search
    references: dict[str, list[int]]
    """the large model's own answers to the tuning prompts"""
    clock: float
    """live speedups over priced ones"""
    path: Path

    def __call__(self, policy: Policy, trial: int, quantile: float) -> tuple[float, np.ndarray]:
        """Speedup over the large model alone, on all these prompts, and the losses on those tuned on."""
        key = {"trial": trial, "quantile": round(quantile, 6)}
        for row in atomic.read_rows(self.path):
            if key.items() <= row.items():
                return row["speedup"] * self.clock, np.array(row["losses"])
        policy = policy.with_threshold(self.search.threshold(policy, quantile))
        found = self._written(policy, f"texts at quantile {quantile:.3f}")
        atomic.append_rows(self.path, [key | found])
        return found["speedup"] * self.clock, np.array(found["losses"])

    def _written(self, policy: Policy, title: str) -> dict:
        job, texts, grouped = self.job, {}, batches(self.job.splits["fit"] + self.job.splits["tune"])
        decoder = Backoff(job.models, policy.to(job.large.device))
        for some in track(grouped, title):
            texts |= dict(zip((p.id for p in some), write(decoder, some, job.settings.max_new_tokens), strict=True))
        prompts = [prompt for some in grouped for prompt in some]
        answers = [range(self._length(p.id)) for p in prompts]
        own = handoff(prompts, [texts[p.id][1] for p in prompts], job.cost)
        losses = [job.metric(p, texts[p.id][0], self.references[p.id])[0] for p in job.splits["tune"]]
        return {"speedup": speedup({LARGE: alone(prompts, answers, job.cost), "own": own}, "own"), "losses": losses}

    def _length(self, prompt: str) -> int:
        """Tokens of the large model's own answer."""
        if prompt in self.references:
            return len(self.references[prompt])
        fit = self.search.fit
        return int(((fit["prompt"] == prompt) & (fit["trajectory"] == LARGE)).sum())


def loss_correction(metric: QualityMetric, losses: np.ndarray, replayed: float) -> float:
    """The factor from a replayed loss to the one that a budget is held against.

    A factor of a few prompts may make a budget stricter, not looser: a policy that happened to lose next to nothing on
    them would be let off everything elsewhere. A grader counts in units of its own, so there it may be below 1, but a
    standard error is added.
    """
    if replayed <= 0:
        return 1.0
    if metric.grader is None:
        return max(float(losses.mean()) / replayed, 1.0)
    return max(float(losses.mean() + losses.std() / np.sqrt(len(losses))) / replayed, 0.0)
