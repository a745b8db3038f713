"""The main job step by step; ``train/fit_policy.py`` is its command line."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from datetime import UTC, datetime

import numpy as np

from policies import Rule
from train.common import atomic
from train.common.cli import checking
from train.common.machine import machine
from train.common.preparation import Job, prepare
from train.common.progress import log_to, say
from train.common.tracking import Tracker
from train.data.splits import split_hash
from train.methods.backoff import BackoffRun
from train.methods.hybrid import HybridRun
from train.methods.speculative import SpeculativeRun
from train.reports import figure, page, tables
from train.search.study import complete, finished, join_study, open_study, pruned, run_study, wait_for_trials

METHODS = {"backoff": BackoffRun, "speculative": SpeculativeRun, "hybrid": HybridRun}


def run(config) -> None:
    """Traces, search, live correction, hold-out, report. Raises InputError before any work is done."""
    with checking():
        job = prepare(config)
        study = join_study(**where(job)) if config.join else None
        method = METHODS[config.method](job)
    if study is not None:
        return run_study(study, method.search, config.trials, [])
    settings = {name: str(value) for name, value in asdict(config).items()}
    with Tracker(config.wandb, job.folder, config.name, settings) as tracker, log_to(job.folder / "log.txt"):
        study = open_study(**where(job), seed=config.seed, baselines=method.search.baselines())
        run_study(study, method.search, config.trials, [tracker.trial])
        wait_for_trials(study)
        for trial in finished(study):  # those of other workers and of earlier starts
            tracker.trial(study, trial)
        tracker.files("study", "traces")
        chosen = method.tune(study)
        if chosen is None:
            return
        result = describe(job, method, study, chosen) | method.measure_holdout(chosen)
        result["verdict"] += told_apart(job, result["methods"])
        _write(job, method, chosen, result)
        tracker.table(result)
        tracker.files("policy")


def told_apart(job: Job, methods: list[dict]) -> str:
    """A word about a grader that does not tell the models apart: it says as little about what lies between them."""
    small = next(method for method in methods if method["key"] == "small")
    low, high = small["loss_interval"]
    if job.judge.grader is None or low > 0:
        return ""
    return (
        f" The grader does not tell the small model from the large one on these prompts (it loses {small['loss']:.3f}, "
        f"95 % interval {low:.3f} to {high:.3f}), so what it says of the others is no evidence."
    )


def where(job: Job) -> dict:
    """Where the study of a run is. In a database that others use too, its name tells what made the run."""
    if job.config.storage is None:
        return {"where": job.folder / "study.journal"}
    made = hashlib.sha256((job.folder / "run.json").read_bytes()).hexdigest()[:12]
    return {"where": job.config.storage, "name": f"{job.config.name}-{made}"}


def describe(job: Job, method, study, chosen) -> dict:
    """The part of the result that is known before the hold-out is touched."""
    policy, config = chosen.policy, job.config
    weights = getattr(policy, "coef_", None)
    return {
        "name": config.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(config),
        "loss_name": job.judge.loss_name,
        "method": config.method,
        "models": [job.small.identity(), job.large.identity()],
        "policy": {
            "describe": policy.describe(),
            "kind": policy.kind,
            "label": method.label,
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
        "trials": [
            {
                "number": t.number,
                "params": t.params,
                "feasible": all(value <= 0 for value in t.constraints.values()),
            }
            | {name: t.user_attrs[name] for name in ("loss", "speedup") if name in t.user_attrs}
            for t in complete(study)
        ],
        "pruned": len(pruned(study)),
        "chosen_trial": chosen.trial,
    } | method.predicted(chosen)


def _write(job: Job, method, chosen, result: dict) -> None:
    _save(job, method, chosen, result)
    atomic.write_json(job.folder / "result.json", result)
    figure.draw(result, job.folder / "frontier.png")
    page.write_html(result, job.folder / "report.html")
    tables.print_table(result)
    say(f"[bold]{result['verdict']}[/bold]")
    say(f"wrote {job.folder}/policy.json, report.html, frontier.png, result.json")


def _save(job: Job, method, chosen, result: dict) -> None:
    """policy.json with all that is known of it; when a promise could not be made, one that keeps it all the same."""
    keys = ("goal", "machine", "splits", "cost", "verdict", "comparison", "methods", "certificate", "traffic")
    provenance = {key: result[key] for key in keys if key in result}
    provenance["groups"] = {name: sorted({p.group for p in prompts}) for name, prompts in job.splits.items()}
    provenance |= {"label": method.label} | method.provenance(chosen)
    save = {"models": result["models"], "provenance": provenance}
    if result.get("certificate", {"chosen": 0})["chosen"] is not None:
        chosen.policy.save(job.folder / "policy.json", **save)
    else:
        lossless = {key: value for key, value in provenance.items() if key != "traffic"}
        Rule.always().save(job.folder / "policy.json", result["models"], lossless)
        chosen.policy.save(job.folder / "uncertified.json", **save)
