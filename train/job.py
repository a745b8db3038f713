"""The main job step by step; ``train/fit_policy.py`` is its command line."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

import numpy as np

from policies import Policy, Rule, token_classes
from train import atomic, figure, report, tables
from train.calibrate import risks
from train.certificate import instead
from train.certification import certification
from train.collect import collect, explore, shards_of
from train.command import checking
from train.holdout import hold_out
from train.labels import labels
from train.machine import machine
from train.prepare import Job, about, console, given, prepare
from train.reliability import reliability
from train.replay import best_length
from train.search import Search, finalists, open_study, run_study
from train.splits import split_hash
from train.traces import Traces, read_traces
from train.tracking import Tracker
from train.tune import LEAST_SPEEDUP, Chosen, tune_live

FALLBACK = "use the large model alone, or exact speculative decoding"


def run(config) -> None:
    """Traces, search, live correction, hold-out, report. Raises InputError before any work is done."""
    with checking():
        job = prepare(config)
        traces = trace(job)
    search = make_search(job, traces)
    settings = {name: str(value) for name, value in asdict(config).items()}
    with Tracker(config.wandb, job.folder, config.name, settings) as tracker:
        study = open_study(job.folder / "study.db", config.seed, search.baselines())
        run_study(study, search, config.trials, [tracker.trial])
        chosen = tune_live(job, search, finalists(study, 3))
        if chosen is None:
            console.print(f"[bold]{_unreachable(job, search)}[/bold]")
            return
        promise = certification(job, search, chosen) if config.certify else None
        length, _ = best_length(traces.of({p.id for p in job.splits["fit"]}, "large"), job.cost, config.max_new_tokens)
        result = describe(job, search, study, chosen) | hold_out(job, search, chosen, length)
        if promise is not None:
            what = [] if promise["chosen"] is not None else [instead(result["methods"])]
            result |= {"certificate": promise, "verdict": " ".join([promise["claim"], *what, result["verdict"]])}
        _write(job, chosen, result)
        tracker.table(result)


def trace(job: Job) -> Traces:
    """The traces of the fitting and tuning prompts: collected and then explored in rounds, or read."""
    config, prompts = job.config, job.splits["fit"] + job.splits["tune"]
    description = about(config, job.small, job.large, job.splits)
    if config.traces is not None:
        return given(config.traces, description)
    folder = job.folder / "traces"
    how = prompts, folder, config.max_new_tokens, config.seed
    collect(job.small, job.large, *how, description | {"seed": config.seed})
    for number in range(1, config.rounds + 1):
        # Whatever later rounds have left there, a round that is gone on with must be of the same policy.
        policy = make_search(job, read_traces(folder, number * shards_of(prompts))).first()
        explore(job.small, job.large, policy, *how, number)
    return read_traces(folder)


def make_search(job: Job, traces: Traces) -> Search:
    fit = traces.of({p.id for p in job.splits["fit"]})
    tune = traces.of({p.id for p in job.splits["tune"]}, "mixed", "policy")
    classes = token_classes(job.large.tokenizer)
    return Search(job.config.policy, job.config.label, fit, tune, job.cost, job.goal, classes, job.config.seed)


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
    } | calibration(search, policy)


def calibration(search: Search, policy: Policy) -> dict:
    """How far the risks of a learned policy can be taken at their word, on tuning prompts that it was not fitted on."""
    if search.kind == "rule":
        return {}
    # Where kl is above its median is asked of the fitting prompts, whose median the policy has learned.
    cut = float(np.median(search.fit["kl"]))
    return {"calibration": reliability(risks(policy, search.tune), labels(search.tune, search.label, cut))}


def _write(job: Job, chosen: Chosen, result: dict) -> None:
    _save(job, chosen, result)
    atomic.write_json(job.folder / "result.json", result)
    figure.draw(result, job.folder / "frontier.png")
    report.write_html(result, job.folder / "report.html")
    tables.print_table(result, console)
    console.print(f"[bold]{result['verdict']}[/bold]")
    console.print(f"wrote {job.folder}/policy.json, report.html, frontier.png, result.json")


def _save(job: Job, chosen: Chosen, result: dict) -> None:
    """policy.json with all that is known of it; when a promise could not be made, one that keeps it all the same."""
    keys = ("goal", "machine", "splits", "cost", "verdict", "comparison", "methods", "certificate", "traffic")
    provenance = {key: result[key] for key in keys if key in result}
    provenance["groups"] = {name: sorted({p.group for p in prompts}) for name, prompts in job.splits.items()}
    provenance |= {"label": job.config.label, "role": "handoff"}
    save = {"models": result["models"], "provenance": provenance}
    if result.get("certificate", {"chosen": 0})["chosen"] is not None:
        chosen.policy.save(job.folder / "policy.json", **save)
    else:
        lossless = {key: value for key, value in provenance.items() if key != "traffic"}
        Rule.always().save(job.folder / "policy.json", result["models"], lossless)
        chosen.policy.save(job.folder / "uncertified.json", **save)
