"""Before any work: everything the user gave is checked, the models are loaded, the splits are made."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console

from decoding import LM
from decoding.cost import measure as measure_cost
from decoding.lm import check_compatible
from decoding.pairs import load_model
from train import atomic, run_folder
from train.prompts import Prompt, load_prompts, template_hash
from train.replay import Cost
from train.search import Goal
from train.splits import split, split_hash
from train.traces import TraceError, Traces, read_meta, read_traces

console = Console()


@dataclass
class Job:
    """Everything the steps share."""

    config: object
    goal: Goal
    folder: Path
    small: LM
    large: LM
    splits: dict[str, list[Prompt]]
    cost: Cost


def prepare(config) -> Job:
    """Check the settings and load models, prompts and the timing table; nothing is written before all is checked."""
    goal = _goal(config)
    folder = output_folder(config)
    check_numbers(config, {"max_new_tokens": 1, "trials": 1, "threads": 1, "seed": 0})
    small, large = load_pair(config)
    tokenizer = large.tokenizer
    longest = min(small.context, large.context) - config.max_new_tokens
    prompts = load_prompts(config.prompts, tokenizer, config.limit, max_tokens=longest)
    splits = split(prompts, dict(zip(("fit", "tune", "holdout"), config.sizes, strict=True)), config.seed)
    if config.traces is not None:
        given(config.traces, about(config, small, large, splits))
    run = _identity(config, [small.identity(), large.identity()], splits)
    run_folder.claim(folder / "run.json", run, config, f"use another --name or delete {folder}")
    return Job(config, goal, folder, small, large, splits, timing_table(folder, small, large))


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


def _goal(config) -> Goal:
    speedup, budget = config.target_speedup, config.quality_budget
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


def check_numbers(config, least_values: dict[str, int]) -> None:
    """Each setting is None or at least so much, and the device is there; sets the number of threads."""
    for name, least in least_values.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise ValueError(f"no device {config.device!r} here: {str(error).splitlines()[0]}") from error


def load_pair(config) -> tuple[LM, LM]:
    """(small, large), of one tokenizer."""
    with console.status("loading the models"):
        large = load_model("large", config.large, config.device, config.dtype)
        small = load_model("small", config.small, config.device, config.dtype)
    check_compatible([small, large])
    return small, large


def _identity(config, models: list[dict], splits: dict) -> dict:
    """What a run that is gone on with must not change: its trials and measurements would be mixed with others."""
    settings = {key: str(value) for key, value in asdict(config).items() if key not in ("trials", "wandb", "output")}
    return {"settings": settings, "models": models, "splits": {name: split_hash(p) for name, p in splits.items()}}


def timing_table(folder: Path, small: LM, large: LM) -> Cost:
    """The timing table, measured once per run."""
    path = folder / "cost.json"
    if not path.exists():
        with console.status("timing both models"):
            tables = measure_cost([small, large], say=console.print)
        atomic.write_json(path, [{str(n): s for n, s in table.items()} for table in tables])
    return Cost(*json.loads(path.read_text(encoding="utf-8")))
