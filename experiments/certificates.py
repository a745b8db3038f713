"""False certification and power of certificates, on simulated prompts whose true loss is known.

    python experiments/certificates.py

First table: the share of runs in which a single candidate of a known true loss is certified. At the budget itself that
is the false certification rate, which must not exceed its nominal level; below it, it is the power. Second table: 25
candidates whose true losses rise evenly to twice the budget, and the share of runs in which the chosen one exceeds the
budget. It is chosen by the certificate, or naively: the last whose mean on as many tuning prompts is in the budget.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.certification.betting import bets, betting, binomial
from train.certify import TAIL, check_settings, needed
from train.common import atomic
from train.common.cli import checking, command
from train.common.progress import say
from train.reports.terminal import print_rows

PARTS = (0.0, 0.5, 0.75, 1.0)
LADDER = np.linspace(0.08, 2.0, 25)
BETTER = 0.1
"""share of prompts on which a candidate with signed losses is better than the large model, by the cap"""


@dataclass
class Certificates:
    """False certification, power and the naive choice, by simulation."""

    runs: int = 2000
    """simulated sets of prompts"""
    prompts: int = 400
    budget: float = 0.02
    confidence: float = 0.9
    loss_cap: float = 0.25
    seed: int = 0
    output: Path | None = None
    """write the figures to this JSON file"""


LOSSES: dict[str, Callable] = {
    # Right or wrong answers: a wrong one costs the cap.
    "0/1": lambda u, mean, cap: u < mean / cap,
    # A power law between 0 and the cap: most prompts lose little.
    "graded": lambda u, mean, cap: cap * u ** (cap / mean - 1) if mean > 0 else np.zeros_like(u),
    # Better on some prompts, worse on others, as differences of two scores are.
    "signed": lambda u, mean, cap: np.where(u < mean / cap + BETTER, 2 * cap, np.where(u > 1 - BETTER, -cap, 0.0)),
    # Rare losses of 1, as numbers and not as booleans.
    "beyond the cap": lambda u, mean, cap: np.where(u < mean / cap, 1.0, 0.0),
}
"""Losses whose mean, each capped, is ``mean``, from uniform ``u``."""


def run(config: Certificates) -> dict:
    """Simulate, print and write the figures. Raises InputError for a budget, confidence or cap that cannot be."""
    with checking():
        check_settings(config.budget, config.confidence, config.loss_cap)
    result = {
        "level": (1 - TAIL) * (1 - config.confidence),
        "needed": {
            str(part): needed(config.budget, config.confidence, config.loss_cap, part * config.budget)
            for part in PARTS[:-1]
        },
        "certified": {kind: {str(part): share_certified(config, kind, part) for part in PARTS} for kind in LOSSES},
        "broken": {kind: shares_broken(config, kind) for kind in LOSSES},
    }
    show(config, result)
    if config.output is not None:
        atomic.write_json(config.output, result)
    return result


def share_certified(config: Certificates, kind: str, part: float) -> float:
    """Share of runs that certify a candidate whose true loss is ``part`` of the budget."""
    u = np.random.default_rng(config.seed).random((config.runs, config.prompts))
    return float(passes(config, LOSSES[kind](u, part * config.budget, config.loss_cap)).mean())


def passes(config: Certificates, losses: np.ndarray) -> np.ndarray:
    """bool [runs]: whether ``certify`` would pass a candidate of these losses [runs, prompts]."""
    level, (_, n) = (1 - TAIL) * (1 - config.confidence), losses.shape
    if losses.dtype == bool:
        counts, where = np.unique(losses.sum(1), return_inverse=True)
        return np.array([binomial(int(k), n, config.budget / config.loss_cap) for k in counts])[where] <= level
    capped = np.minimum(losses, config.loss_cap)
    return betting(capped, bets(capped, config.loss_cap, level), config.budget) <= level


def shares_broken(config: Certificates, kind: str) -> dict[str, float]:
    """Shares of runs with a choice, and with one over the budget, by the certificate and naively; mean losses."""
    rng = np.random.default_rng(config.seed)
    certifying, tuning = rng.random((2, config.runs, config.prompts))
    means = LADDER * config.budget
    tested = np.array([passes(config, LOSSES[kind](certifying, mean, config.loss_cap)) for mean in means])
    chosen = np.logical_and.accumulate(tested).sum(0)
    cost = config.loss_cap if kind == "0/1" else 1.0
    seen = [np.minimum(LOSSES[kind](tuning, m, config.loss_cap) * cost, config.loss_cap).mean(1) for m in means]
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
    """Print both tables."""
    say(
        f"share certified, of {config.runs} runs on {config.prompts} prompts; "
        f"nominal level of the last column: {result['level']:g}"
    )
    rows = [(kind, *(f"{value:.3f}" for value in row.values())) for kind, row in result["certified"].items()]
    print_rows(("losses", *(f"true loss {part:g} of the budget" for part in PARTS)), rows)
    keys = ("certificate_breaks", "certificate_promises", "naive_breaks")
    rows = [(kind, *(f"{row[key]:.3f}" for key in keys)) for kind, row in result["broken"].items()]
    print_rows(("25 candidates", "certified one exceeds", "any certified", "naive choice exceeds"), rows)
    say(f"prompts needed, by true loss as a part of the budget: {result['needed']}")


main = command(Certificates, run, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
