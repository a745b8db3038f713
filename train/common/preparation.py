"""Before any work: everything the user gave is checked, the models are loaded, the splits are made."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from decoding import LM
from decoding.cli.options import use
from decoding.cost.timing import measure as measure_cost
from decoding.models.defaults import load_model
from decoding.models.lm import check_compatible
from train.certify import LIMIT, check_settings, needed
from train.common import atomic, run_folder
from train.common.cli import at_least
from train.data.prompts import Prompt, load_prompts, template_hash
from train.data.splits import refuse_overlap, reserve, split, split_hash
from train.quality.metric import QualityMetric
from train.replay.backoff import TimingTables
from train.search.backoff import Goal
from train.search.study import check_storage
from train.traces.collect_drafts import given_drafts
from train.traces.handoff_traces import TraceError, Traces, read_meta, read_traces

console = Console()
NOT_OF_THE_RUN = ("trials", "wandb", "output", "join", "storage", "frontier")
"""settings with which a run may be gone on with that began with others"""


@dataclass
class Job:
    """Everything the steps share."""

    config: object
    goal: Goal | None
    """None where nothing can be lost"""
    folder: Path
    small: LM
    large: LM
    splits: dict[str, list[Prompt]]
    cost: TimingTables
    judge: QualityMetric


def prepare(config) -> Job:
    """Check the settings and load models, prompts and the timing table; nothing is written before all is checked."""
    goal = _goal(config)
    folder = output_folder(config)
    if config.join and not (folder / "run.json").exists():
        raise ValueError(f"there is no run to join in {folder}; start it without --join first")
    at_least(config, {"max_new_tokens": 1, "trials": 1, "longest": 1, "seed": 0, "rounds": 0})
    use(config.device, config.threads)
    _check_certificate(config)
    if config.storage is not None:
        check_storage(config.storage)
    small, large = load_pair(config)
    tokenizer = large.tokenizer
    longest = min(small.context, large.context) - config.max_new_tokens
    prompts = load_prompts(config.prompts, tokenizer, config.limit, max_tokens=longest)
    splits = split(prompts, dict(zip(("fit", "tune", "holdout"), config.sizes, strict=True)), config.seed)
    if config.certify:
        splits["certify"] = _beyond(config, prompts, tokenizer, longest)
        refuse_overlap(splits)
    judge = QualityMetric(large, config.grader)
    judge.check(prompt for some in splits.values() for prompt in some)
    if config.traces is not None:
        _check_traces(config, small, large, splits)
    run = _identity(config, [small.identity(), large.identity()], splits)
    run_folder.ensure_same_run(folder / "run.json", run, config, f"use another --name or delete {folder}")
    return Job(config, goal, folder, small, large, splits, timing_table(folder, small, large), judge)


def _check_traces(config, small: LM, large: LM, splits: dict[str, list[Prompt]]) -> None:
    """TraceError when those of ``--traces`` are of something else."""
    if config.method == "backoff":
        given(config.traces, about(config, small, large, splits))
    else:
        prompts = splits["fit"] + splits["tune"]
        given_drafts(config.traces, small, large, prompts, config.longest, config.max_new_tokens)


def about(config, small: LM, large: LM, splits: dict[str, list[Prompt]]) -> dict:
    """What traces are of: written beside them, and compared with when they are given."""
    return {
        "models": [small.identity(), large.identity()],
        "template": template_hash(large.tokenizer),
        "prompts": {p.id: split_hash([p]) for p in splits["fit"] + splits["tune"]},
        "max_new_tokens": config.max_new_tokens,
    }


def given(folder: Path, description: dict) -> Traces:
    """The traces in ``folder``, which may hold more prompts than needed. TraceError when they are of something else."""
    meta, traces = read_meta(folder), read_traces(folder)
    differing = [key for key, value in description.items() if key != "prompts" and meta.get(key) != value]
    if differing:
        raise TraceError(f"the traces in {folder} are of another run ({', '.join(differing)} differ)")
    there, known = set(traces["prompt"][traces["trajectory"] == "mixed"].tolist()), meta.get("prompts", {})
    missing = [
        name for name, digest in description["prompts"].items() if name not in there or known.get(name) != digest
    ]
    if missing:
        raise TraceError(
            f"the traces in {folder} lack {len(missing)} of {len(description['prompts'])} prompts, such as {missing[0]}"
        )
    return traces


def _goal(config) -> Goal | None:
    speedup, budget = config.target_speedup, config.quality_budget
    if config.method == "speculative":
        for name, value in (("--target-speedup", speedup), ("--quality-budget", budget), ("--grader", config.grader)):
            if value is not None:
                raise ValueError(f"leave out {name}: --method speculative loses nothing and is as fast as it can be")
        if config.frontier:
            raise ValueError("leave out --frontier: --method speculative loses nothing, so there is nothing to trade")
        return None
    if speedup is not None and budget is not None:
        raise ValueError("give --target-speedup or --quality-budget, not both")
    if budget is not None:
        if not 0 < budget < 1:
            raise ValueError(f"--quality-budget is a mean loss between 0 and 1, not {budget:g}")
        return Goal(budget=budget)
    speedup = 1.3 if speedup is None else speedup
    if not 1 < speedup < 1000:
        raise ValueError(f"--target-speedup is a factor over 1, not {speedup:g}")
    return Goal(speedup=speedup)


def output_folder(config) -> Path:
    """OUTPUT/NAME, which is made once everything else has been checked."""
    if config.name in ("", ".", "..") or Path(config.name).name != config.name:
        raise ValueError(f"--name must be a plain folder name, not {config.name!r}")
    folder = config.output / config.name
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"the output folder {folder} cannot be made or written: look at {there}")
    return folder


def _check_certificate(config) -> None:
    """Refuse a certificate that cannot be had, and say before any work how many prompts one would take."""
    budget, confidence, cap, n = config.quality_budget, config.confidence, config.loss_cap, config.certify
    if n < 0:
        raise ValueError(f"--certify is a number of prompts, not {n}")
    if n and budget is None:
        raise ValueError("--certify needs --quality-budget: a certificate promises a loss")
    if n and config.method != "backoff":
        raise ValueError(f"leave out --certify: --method {config.method} promises nothing so far, only backoff does")
    if n:
        check_settings(budget, confidence, cap)
    elif budget is None or not budget < cap or config.method != "backoff":
        return
    enough = [needed(budget, confidence, cap, part * budget) for part in (0.0, 0.5, 0.75)]
    if n and (enough[0] is None or n < enough[0]):
        raise ValueError(f"--certify {n} certifies nothing: {_prompts(enough[0])} are needed even if the loss is 0")
    console.print(
        f"to certify a loss of {budget:g} (at confidence {confidence:g}, losses capped at {cap:g}), --certify needs "
        f"{_prompts(enough[0])} if the true loss is 0, {_prompts(enough[1])} if it is half of that and "
        f"{_prompts(enough[2])} at three quarters{f'; it has {n}' if n else ''}"
    )


def _prompts(n: int | None) -> str:
    return f"more than {LIMIT} prompts" if n is None else f"{n} prompts"


def _beyond(config, used: list[Prompt], tokenizer, longest: int) -> list[Prompt]:
    """The certification prompts: those that follow ``used`` in the same source, so that the other splits stay."""
    pool = load_prompts(config.prompts, tokenizer, len(used) + 4 * config.certify, max_tokens=longest)
    return reserve(pool, used, config.certify)


def load_pair(config) -> tuple[LM, LM]:
    """(small, large), of one tokenizer."""
    with console.status("loading the models"):
        large = load_model("large", config.large, config.device, config.dtype)
        small = load_model("small", config.small, config.device, config.dtype)
    check_compatible([small, large])
    return small, large


def _identity(config, models: list[dict], splits: dict) -> dict:
    """What a run that is gone on with must not change: its trials and measurements would be mixed with others."""
    settings = {key: str(value) for key, value in asdict(config).items() if key not in NOT_OF_THE_RUN}
    return {"settings": settings, "models": models, "splits": {name: split_hash(p) for name, p in splits.items()}}


def timing_table(folder: Path, small: LM, large: LM) -> TimingTables:
    """The timing table, measured once per run."""
    path = folder / "cost.json"
    if not path.exists():
        with console.status("timing both models"):
            tables = measure_cost([small, large], say=console.print)
        atomic.write_json(path, [{str(n): s for n, s in table.items()} for table in tables])
    return TimingTables(*json.loads(path.read_text(encoding="utf-8")))
