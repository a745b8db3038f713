"""Drift of traffic: new steps of a policy against the distribution of steps that it was tuned on.

A certificate and a threshold hold for prompts like those that they were made on. Three statistics compare each column
(every feature that the policy reads, the escalations, the large model's agreement after its calls): the
Kolmogorov-Smirnov distance at the deciles and Student's t of the mean, text by text, test whether the difference is
more than chance; the population stability index (PSI) measures whether it matters. Steps of one text are correlated, so
they count as fewer than they are.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from policies.traffic_log import Counts, counted

DECILES = np.arange(1, 10) / 10
MODERATE = 0.1  # PSI from which a shift is commonly called moderate


@dataclass(frozen=True)
class Drift:
    """The comparison of one batch of steps with the reference."""

    moved: bool
    sentence: str
    columns: dict[str, dict[str, float]]
    """per column: steps, mean, psi, and ks and t with the limits of what chance explains"""


def traffic(columns: dict[str, np.ndarray], texts: np.ndarray) -> dict:
    """The distribution of steps as JSON: per column its deciles, the share of steps up to each, its design effect.

    columns [n] each: every feature, ``escalated``, and ``accepted``, which is 1 or 0 where the large model was called
    for the token before, NaN elsewhere; texts [n]: the text of each step. Unknown values (NaN) are left out.
    Raises ValueError unless there are steps, and one text per step.
    """
    if not len(texts) or any(len(column) != len(texts) for column in columns.values()):
        raise ValueError(f"{len(texts)} texts; there must be one per step, and some steps")
    found = {name: _distribution(column, texts) for name, column in columns.items()}
    return {"texts": len(np.unique(texts)), "columns": {name: one for name, one in found.items() if one is not None}}


def _distribution(column: np.ndarray, texts: np.ndarray) -> dict | None:
    known = ~np.isnan(column)
    values, texts = column[known], texts[known]
    if not len(values):
        return None
    cuts = np.unique(np.quantile(values, DECILES, method="inverted_cdf"))
    below = values[:, None] <= cuts
    return {
        "steps": len(values),
        "mean": float(values.mean()),
        "texts": len(np.unique(texts)),
        "error": _standard_error(values, texts),
        "cuts": cuts.tolist(),
        "below": below.mean(0).tolist(),
        "design_effect": _design_effect(below, texts),
    }


def _design_effect(below: np.ndarray, texts: np.ndarray) -> float:
    """The largest design effect of the shares ``below`` [n, cuts] for clusters ``texts`` [n] (Kish 1965).

    The variance of a share over that of as many independent steps, at least 1.
    """
    shares = below.mean(0)
    _, number = np.unique(texts, return_inverse=True)
    count = number.max() + 1
    if count < 2:
        return float(len(texts))
    sums = np.zeros((count, below.shape[1]))
    np.add.at(sums, number, below - shares)
    between = (sums**2).sum(0) * count / (count - 1)
    independent = len(texts) * shares * (1 - shares)
    return float(max(1.0, np.max(between / np.where(independent > 0, independent, np.inf))))


def _standard_error(values: np.ndarray, texts: np.ndarray) -> float:
    """The standard error of the mean of ``values`` [n] for clusters ``texts`` [n], as of a ratio; 0 of one text."""
    _, number = np.unique(texts, return_inverse=True)
    count = number.max() + 1
    if count < 2:
        return 0.0
    sums = np.bincount(number, values - values.mean())
    return float(np.sqrt((sums**2).sum() * count / (count - 1)) / len(values))


class Monitor:
    """Compares batches of new steps with ``reference``, a dict of ``traffic``: ``policy.provenance["traffic"]``.

    level: the probability of any false alarm over the monitor's whole life: batch k may spend level * 6 / (pi k)^2.
    A batch should hold a few dozen whole texts or more: with fewer, its limits are wide.
    """

    def __init__(self, reference: dict, level: float = 0.01):
        if not 0 < level < 1:
            raise ValueError(f"the level is {level:g}; it must be between 0 and 1")
        self.reference, self.level, self.batches = reference, level, 0

    def update(self, columns: dict[str, np.ndarray]) -> Drift:
        """Compare one batch of steps, given as to ``traffic``. ValueError when it lacks a column of the reference."""
        missing = [name for name in self.reference["columns"] if name not in columns]
        if missing:
            raise ValueError(f"the steps lack {', '.join(missing)}; give every feature that the policy reads")
        known = self.reference["columns"].items()
        return self.compare({name: counted(columns[name], one["cuts"]) for name, one in known})

    def compare(self, counts: dict[str, Counts]) -> Drift:
        """As ``update``, from the counts of each column of the reference, at its ``cuts``."""
        self.batches += 1
        level = self.level * 6 / (math.pi * self.batches) ** 2 / len(self.reference["columns"])
        found = {name: _compared(one, counts[name], level) for name, one in self.reference["columns"].items()}
        moved = [n for n, one in found.items() if _differs(one) and one["psi"] >= MODERATE]
        return Drift(bool(moved), self._sentence(found, moved, counts["escalated"].steps), found)

    def _sentence(self, found: dict, moved: list[str], steps: int) -> str:
        shown = sorted(moved or found, key=lambda name: -found[name]["psi"])[:3]
        what = ", ".join(
            f"{name} (PSI {found[name]['psi']:.2f}, mean {found[name]['mean']:.3g}, was "
            f"{self.reference['columns'][name]['mean']:.3g})"
            for name in shown
        )
        if not moved:
            return f"{steps} steps show no sign that traffic has moved; most different: {what}."
        return f"Traffic has moved, as {steps} steps show: {what}; tune and certify again on prompts like these."


def _differs(one: dict[str, float]) -> bool:
    """Whether a column differs by more than chance explains."""
    return one["ks"] > one["limit"] or one["t"] > one["t_limit"]


def _compared(reference: dict, counts: Counts, level: float) -> dict[str, float]:
    """PSI, KS and t of one column; chance exceeds the limits of KS (2 exp(-2 n d^2)) and t each with ``level`` / 2."""
    level /= 2
    if not counts.steps:
        return {"steps": 0, "mean": math.nan, "psi": 0.0, "ks": 0.0, "limit": 1.0, "t": 0.0, "t_limit": math.inf}
    below = np.array(counts.below) / counts.steps
    inverse_sizes = reference["design_effect"] * (1 / counts.steps + 1 / reference["steps"])
    return {
        "steps": counts.steps,
        "mean": counts.sum / counts.steps,
        "psi": _psi(np.array(reference["below"]), reference["steps"], below, counts.steps),
        "ks": float(np.abs(below - reference["below"]).max()),
        "limit": math.sqrt(math.log(2 / level) / 2 * inverse_sizes),
    } | _student(reference, counts, level)


def _student(reference: dict, counts: Counts, level: float) -> dict[str, float]:
    """Student's t of the difference of means, if new texts vary as those of the reference do, and its limit."""
    if not reference.get("error"):  # it does not vary, is of one text, or an earlier version wrote it
        return {"t": 0.0, "t_limit": math.inf}
    error = reference["error"] * math.sqrt(1 + reference["steps"] / counts.steps)
    limit = float(student.isf(level / 2, reference["texts"] - 1))
    return {"t": abs(counts.sum / counts.steps - reference["mean"]) / error, "t_limit": limit}


def _psi(before: np.ndarray, n: int, after: np.ndarray, m: int) -> float:
    """The population stability index of two sets of shares; half a step in every bin keeps it finite."""
    p, q = (np.diff(share, prepend=0.0, append=1.0) for share in (before, after))
    p, q = (n * p + 0.5) / (n + 0.5 * len(p)), (m * q + 0.5) / (m + 0.5 * len(q))
    return float(((q - p) * np.log(q / p)).sum())
