"""The main job step by step; ``train/fit_policy.py`` is its command line."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import transformers
from rich.console import Console

from decoding import LM, Autoregressive, Backoff
from decoding.cost import measure as measure_cost
from decoding.lm import check_compatible
from decoding.pairs import load_model
from policies import Policy, token_classes
from train import atomic, figure, live, report, tables
from train.collect import collect
from train.holdout import hold_out
from train.prompts import Prompt, load_prompts, template_hash
from train.replay import Cost, best_length
from train.search import GRID, Goal, Search, finalists, open_study, run_study, solve
from train.splits import split, split_hash
from train.traces import TraceError, Traces, read_meta, read_traces
from train.tracking import Tracker

console = Console()
LEAST_SPEEDUP = 1.05
FALLBACK = "use the large model alone, or exact speculative decoding"


class InputError(ValueError):
    """Something the user gave is wrong; the message is one sentence."""


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


def run(config) -> None:
    """Traces, search, live correction, hold-out, report. Raises InputError before any work is done."""
    try:
        job = prepare(config)
        traces = trace(job)
    except (OSError, ValueError) as error:
        raise InputError(" ".join(str(error).split())) from error
    search = make_search(job, traces)
    settings = {name: str(value) for name, value in asdict(config).items()}
    with Tracker(config.wandb, job.folder, config.name, settings) as tracker:
        study = open_study(job.folder / "study.db", config.seed, search.baselines())
        run_study(study, search, config.trials, [tracker.trial])
        chosen = tune_live(job, search, finalists(study, 3))
        if chosen is None:
            console.print(f"[bold]{_unreachable(job, search)}[/bold]")
            return
        length, _ = best_length(traces.of({p.id for p in job.splits["fit"]}, "large"), job.cost, config.max_new_tokens)
        result = describe(job, search, study, chosen) | hold_out(job, search, chosen, length)
        _write(job, chosen, result)
        tracker.table(result)


def prepare(config) -> Job:
    """Check the settings and load models, prompts and the timing table; nothing is written before all is checked."""
    goal = _goal(config)
    folder = _folder(config)
    _check_numbers(config)
    small, large = _models(config)
    tokenizer = large.tokenizer
    longest = min(small.context, large.context) - config.max_new_tokens
    prompts = load_prompts(config.prompts, tokenizer, config.limit, max_tokens=longest)
    splits = split(prompts, dict(zip(("fit", "tune", "holdout"), config.sizes, strict=True)), config.seed)
    if config.traces is not None:
        _given(config.traces, _about(config, small, large, splits))
    _remember(folder, config, [small.identity(), large.identity()], splits)
    return Job(config, goal, folder, small, large, splits, _cost(folder, small, large))


def trace(job: Job) -> Traces:
    """The traces of the fitting and tuning prompts, collected or read."""
    config, prompts = job.config, job.splits["fit"] + job.splits["tune"]
    about = _about(config, job.small, job.large, job.splits)
    if config.traces is not None:
        return _given(config.traces, about)
    folder = job.folder / "traces"
    collect(job.small, job.large, prompts, folder, config.max_new_tokens, config.seed, about | {"seed": config.seed})
    return read_traces(folder)


def _about(config, small: LM, large: LM, splits: dict[str, list[Prompt]]) -> dict:
    """What traces are of: written beside them, and compared with when they are given."""
    return {
        "models": [small.identity(), large.identity()],
        "template": template_hash(large.tokenizer),
        "prompts": {p.id: split_hash([p]) for p in splits["fit"] + splits["tune"]},
        "max_new_tokens": config.max_new_tokens,
    }


def _given(folder: Path, about: dict) -> Traces:
    """The traces in ``folder``, which may hold more prompts than needed. TraceError when they are of something else."""
    meta, traces = read_meta(folder), read_traces(folder)
    differing = [key for key, value in about.items() if key != "prompts" and meta.get(key) != value]
    if differing:
        raise TraceError(f"the traces in {folder} are of another run ({', '.join(differing)} differ)")
    there, known = set(traces["prompt"].tolist()), meta.get("prompts", {})
    missing = [name for name, digest in about["prompts"].items() if name not in there or known.get(name) != digest]
    if missing:
        raise TraceError(
            f"the traces in {folder} lack {len(missing)} of {len(about['prompts'])} prompts, such as {missing[0]}"
        )
    return traces


def make_search(job: Job, traces: Traces) -> Search:
    fit = traces.of({p.id for p in job.splits["fit"]})
    tune = traces.of({p.id for p in job.splits["tune"]}, "mixed")
    classes = token_classes(job.large.tokenizer)
    return Search(job.config.policy, job.config.label, fit, tune, job.cost, job.goal, classes, job.config.seed)


@dataclass
class Chosen:
    """The policy, the trial it came from, and how live runs on the tuning prompts compared with replay."""

    policy: Policy
    trial: int
    quantile: float
    faster: float
    worse: float


def tune_live(job: Job, search: Search, trials: list) -> Chosen | None:
    """Run the best trials on the tuning prompts and correct the best one's threshold; None when none can win."""
    decoders = {live.LARGE: Autoregressive(job.large)}
    for trial in trials:
        policy = search.policy(trial.params)
        policy.set_threshold(search.threshold(policy, trial.params["quantile"]))
        decoders[f"trial {trial.number}"] = Backoff([job.small, job.large], policy.to(job.large.device))
    measured = live.measure(
        decoders, job.splits["tune"], job.config.max_new_tokens, job.large, job.folder / "tune.jsonl", "live, tuning"
    )
    options = []
    for trial in trials:
        name, policy = f"trial {trial.number}", search.policy(trial.params)
        speed, loss = search.replay(policy, trial.params["quantile"])
        faster = live.speedup(measured, name) / speed
        worse = float(measured[name]["loss"].mean()) / loss if loss > 0 else 1.0
        curve = search.curve(policy)
        i = solve(curve, job.goal, faster, worse)
        console.print(
            f"trial {trial.number}: replay {speed:.3f}x at loss {loss:.4f}, "
            f"live {speed * faster:.3f}x at loss {loss * worse:.4f}"
        )
        if i is not None and (job.goal.budget is None or _worth_it(curve[i, 0], faster)):
            value = job.goal.value(curve[i, 0] * faster, curve[i, 1] * worse)
            options.append((value, Chosen(policy, trial.number, float(GRID[i]), faster, worse)))
    if not options:
        return None
    chosen = min(options, key=lambda option: option[0])[1]
    chosen.policy.set_threshold(search.threshold(chosen.policy, chosen.quantile))
    return chosen


def _worth_it(replayed: float, faster: float) -> bool:
    """Whether a policy within the loss budget is a speedup at all: by replay alone too, as ``faster`` is a noisy factor
    measured elsewhere on the curve, and would make handing on everything look quick."""
    return replayed > 1 and replayed * faster >= LEAST_SPEEDUP


def _unreachable(job: Job, search: Search) -> str:
    fastest = search.random_curve()[-1, 0]
    if job.goal.budget is None:
        return (
            f"{job.goal.speedup:g}x is out of reach of this pair on this machine: the small model alone is about "
            f"{fastest:.2f}x as fast as the large one; {FALLBACK}"
        )
    return f"a loss of {job.goal.budget:g} allows no speedup over {LEAST_SPEEDUP:g}x with this pair: {FALLBACK}"


def describe(job: Job, search: Search, study, chosen: Chosen) -> dict:
    """The part of the result that is known before the hold-out is touched."""
    policy, config = chosen.policy, job.config
    weights = getattr(policy, "coef_", None)
    return {
        "name": config.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(config),
        "models": [job.small.identity(), job.large.identity()],
        "goal": {"target_speedup": job.goal.speedup}
        if job.goal.budget is None
        else {"quality_budget": job.goal.budget},
        "policy": {
            "describe": policy.describe(),
            "kind": config.policy,
            "label": config.label,
            "threshold": float(policy.threshold),
            "quantile": chosen.quantile,
            "features": list(policy.names),
            "weights": None if weights is None else dict(zip(policy.names, np.ravel(weights).tolist(), strict=True)),
        },
        "splits": {
            name: {
                "prompts": len(prompts),
                "groups": len({p.group for p in prompts}),
                "hash": split_hash(prompts),
            }
            for name, prompts in job.splits.items()
        },
        "cost": {"small": job.cost.small, "large": job.cost.large},
        "replay": {"live_speedup_over_replayed": chosen.faster, "live_loss_over_replayed": chosen.worse},
        "frontier": {"policy": search.curve(policy).tolist(), "random": search.random_curve().tolist()},
        "trials": [
            {
                "number": t.number,
                "params": t.params,
                "loss": t.user_attrs["loss"],
                "speedup": t.user_attrs["speedup"],
                "feasible": t.constraints["goal"] <= 0,
            }
            for t in study.trials
            if t.values is not None
        ],
        "chosen_trial": chosen.trial,
    }


def machine(config) -> dict:
    """What a speed depends on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(
            (x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")), cpu
        )
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if config.device.startswith("cuda") else config.device,
        "dtype": config.dtype,
    }


def _write(job: Job, chosen: Chosen, result: dict) -> None:
    provenance = {key: result[key] for key in ("goal", "machine", "splits", "cost", "verdict", "comparison", "methods")}
    provenance["groups"] = {name: sorted({p.group for p in prompts}) for name, prompts in job.splits.items()}
    provenance["label"] = job.config.label
    chosen.policy.save(job.folder / "policy.json", models=result["models"], provenance=provenance)
    atomic.write_json(job.folder / "result.json", result)
    figure.draw(result, job.folder / "frontier.png")
    report.write_html(result, job.folder / "report.html")
    tables.print_table(result, console)
    console.print(f"[bold]{result['verdict']}[/bold]")
    console.print(f"wrote {job.folder}/policy.json, report.html, frontier.png, result.json")


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


def _folder(config) -> Path:
    """OUTPUT/NAME, which is made once everything else has been checked."""
    if config.name in ("", ".", "..") or Path(config.name).name != config.name:
        raise ValueError(f"--name must be a plain folder name, not {config.name!r}")
    folder = config.output / config.name
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"the output folder {folder} cannot be made or written: look at {there}")
    return folder


def _check_numbers(config) -> None:
    for name, least in {"max_new_tokens": 1, "trials": 1, "threads": 1, "seed": 0}.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise ValueError(f"no device {config.device!r} here: {str(error).splitlines()[0]}") from error


def _models(config) -> tuple[LM, LM]:
    with console.status("loading the models"):
        large = load_model("large", config.large, config.device, config.dtype)
        small = load_model("small", config.small, config.device, config.dtype)
    check_compatible([small, large])
    return small, large


def _remember(folder: Path, config, models: list[dict], splits: dict) -> None:
    """Refuse to go on with a run of other settings: its trials and measurements would be mixed with these."""
    path = folder / "run.json"
    settings = {key: str(value) for key, value in asdict(config).items() if key not in ("trials", "wandb", "output")}
    now = {"settings": settings, "models": models, "splits": {name: split_hash(p) for name, p in splits.items()}}
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        atomic.write_json(path, now)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        flat = {**before["settings"], "models": before["models"], "splits": before["splits"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged; use another --name or delete {folder}") from error
    differing = [
        key for key, value in {**settings, "models": models, "splits": now["splits"]}.items() if flat.get(key) != value
    ]
    if differing:
        raise ValueError(f"{folder} holds a run with another {', '.join(differing)}; use another --name or delete it")


def _cost(folder: Path, small: LM, large: LM) -> Cost:
    """The timing table, measured once per run."""
    path = folder / "cost.json"
    if not path.exists():
        with console.status("timing both models"):
            tables = measure_cost([small, large])
        atomic.write_json(path, [{str(n): s for n, s in table.items()} for table in tables])
    return Cost(*json.loads(path.read_text(encoding="utf-8")))
