"""The share of promised losses kept on real losses: by a certificate, and by the best threshold on tuning prompts.

    python experiments/kept.py runs/default --limit 240 --budget 0.1 --loss-cap 0.5

The losses are those of a finished run's policy at several thresholds, on prompts that the run has not used, one of each
group. First, these prompts are split into tuning, certification and untouched thirds: each choice is made on its own
third and its loss compared on the untouched one. Second, the prompts stand for a population whose mean loss is known:
both choices are made --runs times on prompts drawn from it.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from decoding.cli.options import use
from experiments.shared.handoff_texts import price_texts, write_texts
from experiments.shared.unseen_prompts import one_of_each_group, shortest_first, unseen_prompts
from policies.decoder_spec import DecoderSpec
from train.certify import certify, check_settings, prompt_order
from train.common import atomic
from train.common.cli import at_least, checking, command
from train.common.load_run import FinishedRun, load_run
from train.common.preparation import crew_of
from train.common.progress import track
from train.data.prompts import Prompt
from train.evaluation.live import LARGE, bootstrap, speedup
from train.replay.pricing import alone
from train.reports.tables import format_number, with_interval
from train.reports.terminal import print_rows
from train.search.backoff import Search
from train.workers import backend
from train.workers.blueprint import Blueprint


@dataclass
class Kept:
    """Certificates against the best threshold on tuning prompts, on the losses of a finished run's policy."""

    run: Annotated[Path, tyro.conf.Positional]
    """folder of a finished run of train/fit_policy.py --method backoff"""
    limit: int = 240
    """prompts, the shortest first"""
    longest: int = 256
    """prompts of more tokens are left out"""
    thresholds: int = 6
    """candidates, evenly spaced in the share of escalated tokens"""
    budget: float = 0.1
    """promised mean loss, each prompt's capped"""
    loss_cap: float = 0.5
    confidence: float = 0.9
    runs: int = 2000
    """draws of prompts on which both choices are made"""
    batch: int = 16
    grader: str | None = None
    """the grader of the run, where it is a module:function of yours: such code is run at your word only"""
    threads: int | None = None
    workers: str | None = None
    """who writes the texts, as train/fit_policy.py takes it (default: this process)"""
    seed: int = 0
    output: Path | None = None
    """folder of texts and result.json (default: RUN/kept)"""

    @property
    def folder(self) -> Path:
        return self.run / "kept" if self.output is None else self.output


def run(config: Kept) -> dict:
    """Write the missing texts and result.json. Raises InputError before any work is done."""
    with checking():
        found, prompts = prepare(config)
    folder = config.folder
    folder.mkdir(parents=True, exist_ok=True)
    with closing(found.crew):
        losses, speedups = measure(config, found, prompts, folder)
    order = prompt_order([p.id for p in prompts], config.seed)
    tune, held, untouched = np.array_split(order, 3)
    result = {
        "prompts": len(prompts),
        "budget": config.budget,
        "candidates": [{"priced_speedup": s, "loss": float(c.mean())} for s, c in zip(speedups, losses.T, strict=True)],
        "once": {
            "best": on_untouched(losses[untouched], fastest_within(losses[tune], config.budget)),
            "certificate": on_untouched(losses[untouched], certified(config, losses[held])),
        },
        "of_many": repeat_choices(config, losses, len(tune), len(held)),
    }
    atomic.write_json(folder / "result.json", result)
    show(result)
    return result


def prepare(config: Kept) -> tuple[FinishedRun, list[Prompt]]:
    """The run, and one prompt of each group that it has not used. ValueError for what does not fit."""
    at_least(config, {"limit": 3, "longest": 1, "thresholds": 1, "runs": 1, "batch": 1, "seed": 0})
    check_settings(config.budget, config.confidence, config.loss_cap)
    use("cpu", config.threads)
    workers = None if config.workers is None else backend.parse(config.workers, "cpu", config.threads, config.folder)
    found = load_run(config.run, config.grader)
    if found.settings.method != "backoff":
        raise ValueError(f"{config.run} tuned drafts; give a run that tuned hand-offs, with --method backoff")
    prompts = shortest_first(one_of_each_group(unseen_prompts(found), config.longest))[: config.limit]
    if len(prompts) < 3:
        raise ValueError(f"only {len(prompts)} prompts are left that {config.run} has not used; at least 3 are needed")
    return replace(found, crew=crew_of(found.settings, workers, config.folder)), prompts


def measure(config: Kept, found: FinishedRun, prompts: list[Prompt], folder: Path) -> tuple[np.ndarray, list[float]]:
    """Capped losses [prompts, thresholds], safest first, and the priced speedup of each."""
    pair, how, drawn = found.models, (found.new, config.batch), {"sampling": found.sampling, "crew": found.crew}
    own = Blueprint.of(pair, DecoderSpec("large"))
    large = write_texts(own, pair, prompts, folder / "large.jsonl", *how, **drawn)
    references, search = [row["answer"] for row in large], Search.of(found, found.traces)
    measured, losses, speedups = {LARGE: alone(prompts, references, found.cost)}, [], []
    for i in range(1, config.thresholds + 1):
        threshold = search.threshold(found.policy, i / (config.thresholds + 1))
        policy = found.policy.with_threshold(threshold).to(found.large.device)
        path, setting = folder / f"threshold_{i}.jsonl", f"{policy.describe()} {threshold}"
        decoder = Blueprint.of(pair, DecoderSpec("backoff"), policy)
        rows = write_texts(decoder, pair, prompts, path, *how, found.metric, references, setting, **drawn)
        measured["own"] = price_texts(rows, prompts, found.cost, (0.0,))
        losses.append(np.minimum(measured["own"]["loss"], config.loss_cap))
        speedups.append(speedup(measured, "own"))
    return np.stack(losses, 1), speedups


def fastest_within(losses: np.ndarray, budget: float) -> int | None:
    """The fastest candidate whose mean of ``losses`` [prompts, candidates] is within the budget."""
    within = np.flatnonzero(losses.mean(0) <= budget)
    return int(within[-1]) if len(within) else None


def certified(config: Kept, losses: np.ndarray) -> int | None:
    """The candidate that ``losses`` certify."""
    return certify(losses, config.budget, config.confidence, config.loss_cap).chosen


def on_untouched(losses: np.ndarray, chosen: int | None) -> dict:
    """Mean loss of a choice on prompts that it was not made on, with its interval."""
    if chosen is None:
        return {"candidate": None}
    kept = losses[:, chosen]
    interval = bootstrap(lambda rows: kept[rows].mean(), len(kept))
    return {"candidate": chosen, "kept": float(kept.mean()), "interval": interval}


def repeat_choices(config: Kept, losses: np.ndarray, tune: int, held: int) -> dict:
    """Of each way to choose: shares of draws in which it chose and broke its promise, and its choices' mean loss."""
    rng, truth = np.random.default_rng(config.seed), losses.mean(0)
    chosen = {"best": [], "certificate": []}
    for _ in track(range(config.runs), "promises"):
        first, second = (losses[rng.integers(0, len(losses), n)] for n in (tune, held))
        chosen["best"].append(fastest_within(first, config.budget))
        chosen["certificate"].append(certified(config, second))
    shares = {}
    for name, some in chosen.items():
        made = np.array([c for c in some if c is not None], int)
        shares[name] = {
            "chose": len(made) / config.runs,
            "broke": float((truth[made] > config.budget).sum() / config.runs),
            "loss": float(truth[made].mean()) if len(made) else None,
            "candidate": float(made.mean()) if len(made) else None,
        }
    return shares


def show(result: dict) -> None:
    """Print the candidates, and both ways to choose."""
    rows = [(i, f"{one['priced_speedup']:.2f}", f"{one['loss']:.3f}") for i, one in enumerate(result["candidates"])]
    print_rows(("candidate", "priced speedup", "capped loss"), rows, f"{result['prompts']} prompts")
    rows = []
    for name, once in result["once"].items():
        of_many = result["of_many"][name]
        kept = with_interval(once.get("kept"), once.get("interval"), ".3f")
        loss = format_number(of_many["loss"], ".3f")
        rows.append((name, once["candidate"], kept, f"{of_many['chose']:.3f}", f"{of_many['broke']:.3f}", loss))
    head = ("chosen by", "once", "kept on the untouched", "chose", "broke its promise", "mean loss")
    print_rows(head, rows, "promises")


main = command(Kept, run, __doc__, lambda config: config.run)

if __name__ == "__main__":
    raise SystemExit(main())
