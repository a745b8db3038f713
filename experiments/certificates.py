"""Do certificates keep their promise? Simulated prompts whose true loss is known, thousands of times.

    python experiments/certificates.py

First table: how often a single candidate of a known true loss is certified. At the budget itself that is the false
certification rate, which must not exceed its nominal level; below it, it is the power. Second table: 25 candidates
whose true losses rise evenly to twice the budget; how often what is chosen breaks the promise,
by the certificate and by the naive choice, the last candidate whose mean on as many tuning prompts is in the budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from train.certification.betting import bets, betting, binomial
from train.certify import TAIL, check_settings, needed
from train.common import atomic

PARTS = (0.0, 0.5, 0.75, 1.0)
LADDER = np.linspace(0.08, 2.0, 25)
BETTER = 0.1
"""share of prompts on which a candidate with signed losses is better than the large model, by the cap"""


@dataclass
class Certificates:
    """False certification, power, and what the naive choice does, by simulation."""

    runs: int = 2000
    prompts: int = 400
    budget: float = 0.02
    confidence: float = 0.9
    loss_cap: float = 0.25
    seed: int = 0
    output: Path | None = None
    """write the figures to this JSON file"""


def failures(u: np.ndarray, mean: float, cap: float) -> np.ndarray:
    """Right or wrong: a failure costs the cap."""
    return u < mean / cap


def graded(u: np.ndarray, mean: float, cap: float) -> np.ndarray:
    """A power law between 0 and the cap: most prompts lose little."""
    return cap * u ** (cap / mean - 1) if mean > 0 else np.zeros_like(u)


def signed(u: np.ndarray, mean: float, cap: float) -> np.ndarray:
    """Better on some prompts, worse on others: the difference of two graders."""
    return np.where(u < mean / cap + BETTER, 2 * cap, np.where(u > 1 - BETTER, -cap, 0.0))


def heavy(u: np.ndarray, mean: float, cap: float) -> np.ndarray:
    """Rare disasters, all of it beyond the cap, as numbers and not as booleans."""
    return np.where(u < mean / cap, 1.0, 0.0)


KINDS: dict[str, Callable] = {"0/1": failures, "graded": graded, "signed": signed, "beyond the cap": heavy}


def main(config: Certificates) -> dict:
    check_settings(config.budget, config.confidence, config.loss_cap)
    result = {
        "level": (1 - TAIL) * (1 - config.confidence),
        "needed": {str(part): needed_of(config, part) for part in PARTS[:-1]},
        "certified": {kind: {str(part): certified(config, kind, part) for part in PARTS} for kind in KINDS},
        "broken": {kind: broken(config, kind) for kind in KINDS},
    }
    show(config, result)
    if config.output is not None:
        atomic.write_json(config.output, result)
    return result


def needed_of(config: Certificates, part: float) -> int | None:
    return needed(config.budget, config.confidence, config.loss_cap, part * config.budget)


def certified(config: Certificates, kind: str, part: float) -> float:
    """Share of runs in which a candidate whose true loss is ``part`` of the budget passes."""
    u = np.random.default_rng(config.seed).random((config.runs, config.prompts))
    return float(passes(config, KINDS[kind](u, part * config.budget, config.loss_cap)).mean())


def passes(config: Certificates, losses: np.ndarray) -> np.ndarray:
    """bool [runs]: whether losses [runs, prompts] of a candidate pass, as ``certify`` tests them, all runs at once."""
    level, (_, n) = (1 - TAIL) * (1 - config.confidence), losses.shape
    if losses.dtype == bool:
        counts, where = np.unique(losses.sum(1), return_inverse=True)
        return np.array([binomial(int(k), n, config.budget / config.loss_cap) for k in counts])[where] <= level
    capped = np.minimum(losses, config.loss_cap)
    return betting(capped, bets(capped, config.loss_cap, level), config.budget) <= level


def broken(config: Certificates, kind: str) -> dict[str, float]:
    """How often the promise is broken, and how often there is one, by the certificate and by the naive choice."""
    rng = np.random.default_rng(config.seed)
    certifying, tuning = rng.random((2, config.runs, config.prompts))
    means = LADDER * config.budget
    tested = np.array([passes(config, KINDS[kind](certifying, mean, config.loss_cap)) for mean in means])
    chosen = np.logical_and.accumulate(tested).sum(0)
    cost = config.loss_cap if kind == "0/1" else 1.0
    seen = [np.minimum(KINDS[kind](tuning, m, config.loss_cap) * cost, config.loss_cap).mean(1) for m in means]
    fits = np.array(seen) <= config.budget
    naive = np.where(fits.any(0), len(means) - fits[::-1].argmax(0), 0)
    true = np.concatenate([[0.0], means])  # 0: nothing chosen
    return {
        "certificate_breaks": float((true[chosen] > config.budget * (1 + 1e-9)).mean()),
        "certificate_promises": float((chosen > 0).mean()),
        "certificate_loss": float(true[chosen].mean() / config.budget),
        "naive_breaks": float((true[naive] > config.budget * (1 + 1e-9)).mean()),
        "naive_loss": float(true[naive].mean() / config.budget),
    }


def show(config: Certificates, result: dict) -> None:
    console = Console()
    power = Table("losses", *(f"true loss {part:g} of the budget" for part in PARTS))
    for kind, row in result["certified"].items():
        power.add_row(kind, *(f"{value:.3f}" for value in row.values()))
    console.print(f"certified, of {config.runs} runs on {config.prompts} prompts; the last column at most", end=" ")
    console.print(f"{result['level']:g} by right")
    console.print(power)
    choice = Table("25 candidates", "certificate breaks it", "promises at all", "naive choice breaks it")
    for kind, row in result["broken"].items():
        keys = ("certificate_breaks", "certificate_promises", "naive_breaks")
        choice.add_row(kind, *(f"{row[key]:.3f}" for key in keys))
    console.print(choice)
    console.print(f"prompts needed, by true loss as a part of the budget: {result['needed']}")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Certificates, description=__doc__))
