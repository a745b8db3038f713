"""Is a promised loss kept on the real pair: by a certificate, and by the threshold that looked best when tuning?

    python experiments/kept.py runs/default --limit 240 --budget 0.1 --loss-cap 0.5

One table of real losses: the policy of a finished run at several thresholds, on prompts that its run did not see, one
of each group. First these prompts are split in three, tuning, certification and untouched, and what either choice
promises on its own third is held against the untouched one. Then the table is taken for the whole world: both choices
are made --runs times on prompts drawn from it, and what they promise is held against the world's mean, which is known.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from train.certify import certify, check_settings, prompt_order
from train.common.cli import at_least, attempt, checking
from train.common.progress import track

if TYPE_CHECKING:
    from train.common.load_run import FinishedRun
    from train.data.prompts import Prompt


@dataclass
class Kept:
    """Promised and kept: a certificate against the best threshold on the tuning prompts, on real losses."""

    run: Annotated[Path, tyro.conf.Positional]
    """folder of a finished run of train/fit_policy.py --method backoff"""
    limit: int = 240
    """prompts, the shortest first"""
    longest: int = 256
    """prompts of more tokens are left out"""
    thresholds: int = 6
    """candidates, evenly spaced in the share of tokens that are handed on"""
    budget: float = 0.1
    """the mean loss, capped, that is promised"""
    loss_cap: float = 0.5
    confidence: float = 0.9
    runs: int = 2000
    """times that both choices are made on prompts drawn from the table"""
    batch: int = 16
    threads: int | None = None
    seed: int = 0
    output: Path | None = None
    """folder of texts and result.json (default: RUN/kept)"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when it is done, 2 after one sentence about what was wrong with the input."""
    config = tyro.cli(Kept, args=argv, description=__doc__)
    return attempt("kept", lambda: run(config), config.run)


def run(config: Kept) -> dict:
    """Write what texts are missing, and result.json. Raises InputError before any work is done."""
    from train.common import atomic

    with checking():
        found, prompts = prepare(config)
    folder = config.run / "kept" if config.output is None else config.output
    folder.mkdir(parents=True, exist_ok=True)
    losses, speedups = table(config, found, prompts, folder)
    order = prompt_order([p.id for p in prompts], config.seed)
    tune, held, untouched = np.array_split(order, 3)
    result = {
        "prompts": len(prompts),
        "budget": config.budget,
        "candidates": [{"priced_speedup": s, "loss": float(c.mean())} for s, c in zip(speedups, losses.T, strict=True)],
        "once": {
            name: _promise(losses, chosen, untouched)
            for name, chosen in (
                ("best", best(losses[tune], config.budget)),
                ("certificate", _certified(config, losses[held])),
            )
        },
        "of_many": many(config, losses, len(tune), len(held)),
    }
    atomic.write_json(folder / "result.json", result)
    show(result)
    return result


def prepare(config: Kept) -> tuple[FinishedRun, list[Prompt]]:
    """The run, and one prompt of each group that it has not seen. ValueError for whatever does not fit."""
    from decoding.cli.options import use
    from experiments.shared.unseen_prompts import one_of_each_group, shortest_first, unseen_prompts
    from train.common.load_run import load_run

    at_least(config, {"limit": 3, "longest": 1, "thresholds": 1, "runs": 1, "batch": 1, "seed": 0})
    check_settings(config.budget, config.confidence, config.loss_cap)
    use("cpu", config.threads)
    found = load_run(config.run)
    if found.settings.get("method", "backoff") != "backoff":
        raise ValueError(f"{config.run} tuned drafts; give a run that tuned hand-offs, with --method backoff")
    prompts = shortest_first(one_of_each_group(unseen_prompts(found), config.longest))[: config.limit]
    if len(prompts) < 3:
        raise ValueError(f"only {len(prompts)} prompts are left that {config.run} has not seen; it takes at least 3")
    return found, prompts


def table(config: Kept, found: FinishedRun, prompts: list[Prompt], folder: Path) -> tuple[np.ndarray, list[float]]:
    """Capped losses [prompts, thresholds], safest first, and the priced speedup of each."""
    from experiments.shared.handoff_texts import references_of, texts
    from train.evaluation.live import LARGE, speedup
    from train.replay.pricing import alone

    references = references_of(found, prompts, folder / "large.jsonl", config.batch)
    reference, search = alone(prompts, references, found.cost), found.search(found.traces)
    losses, speedups = [], []
    for i in range(1, config.thresholds + 1):
        policy = found.policy.with_threshold(search.threshold(found.policy, i / (config.thresholds + 1)))
        own = texts(found, policy, prompts, references, folder / f"threshold_{i}.jsonl", config.batch)
        losses.append(np.minimum(own["loss"], config.loss_cap))
        speedups.append(speedup({LARGE: reference, "own": own}, "own"))
    return np.stack(losses, 1), speedups


def best(losses: np.ndarray, budget: float) -> int | None:
    """The fastest candidate whose mean of ``losses`` [prompts, candidates] is within the budget."""
    within = np.flatnonzero(losses.mean(0) <= budget)
    return int(within[-1]) if len(within) else None


def _certified(config: Kept, losses: np.ndarray) -> int | None:
    return certify(losses, config.budget, config.confidence, config.loss_cap).chosen


def _promise(losses: np.ndarray, chosen: int | None, untouched: np.ndarray) -> dict:
    from train.evaluation.live import bootstrap

    if chosen is None:
        return {"candidate": None}
    kept = losses[untouched, chosen]
    interval = bootstrap(lambda rows: kept[rows].mean(), len(kept))
    return {"candidate": chosen, "kept": float(kept.mean()), "interval": interval}


def many(config: Kept, losses: np.ndarray, tune: int, held: int) -> dict:
    """How often each way chose at all, how often it broke its promise, and what its choices lose on average."""
    rng, truth = np.random.default_rng(config.seed), losses.mean(0)
    chosen = {"best": [], "certificate": []}
    for _ in track(range(config.runs), "promises"):
        first, second = (losses[rng.integers(0, len(losses), n)] for n in (tune, held))
        chosen["best"].append(best(first, config.budget))
        chosen["certificate"].append(_certified(config, second))
    said = {}
    for name, some in chosen.items():
        made = np.array([c for c in some if c is not None], int)
        said[name] = {
            "chose": len(made) / config.runs,
            "broke": float((truth[made] > config.budget).sum() / config.runs),
            "loss": float(truth[made].mean()) if len(made) else None,
            "candidate": float(made.mean()) if len(made) else None,
        }
    return said


def show(result: dict) -> None:
    """Print the candidates, and then both ways to choose."""
    console = Console()
    losses = Table("candidate", "priced speedup", "capped loss", title=f"{result['prompts']} prompts")
    for i, one in enumerate(result["candidates"]):
        losses.add_row(str(i), f"{one['priced_speedup']:.2f}", f"{one['loss']:.3f}")
    ways = Table(
        "chosen by", "once", "kept on the untouched", "chose", "broke its promise", "mean loss", title="promises"
    )
    for name, once in result["once"].items():
        of_many = result["of_many"][name]
        kept = "–" if once["candidate"] is None else "{:.3f} [{:.3f}, {:.3f}]".format(once["kept"], *once["interval"])
        loss = "–" if of_many["loss"] is None else f"{of_many['loss']:.3f}"
        ways.add_row(name, str(once["candidate"]), kept, f"{of_many['chose']:.3f}", f"{of_many['broke']:.3f}", loss)
    console.print(losses, ways)


if __name__ == "__main__":
    sys.exit(main())
