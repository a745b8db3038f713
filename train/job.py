"""The main job step by step; ``train/fit_policy.py`` is its command line."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from datetime import UTC, datetime

import numpy as np

from policies import Rule, token_classes
from train import atomic, figure, report, tables
from train.certificate import instead
from train.certification import certification
from train.collect import collect, explore
from train.command import checking
from train.holdout import hold_out
from train.machine import machine
from train.prepare import Job, about, console, given, prepare
from train.replay import best_length
from train.search import Search
from train.speculative_run import SpeculativeRun
from train.splits import split_hash
from train.studies import finalists, finished, join_study, open_study, run_study, settle
from train.traces import Traces, read_traces
from train.tracking import Tracker
from train.tune import LEAST_SPEEDUP, Chosen, tune_live

FALLBACK = "use the large model alone, or exact speculative decoding"


def run(config) -> None:
    """Traces, search, live correction, hold-out, report. Raises InputError before any work is done."""
    with checking():
        job = prepare(config)
        study = join_study(**where(job)) if config.join else None
        method = METHODS[config.method](job)
    if study is not None:
        return run_study(study, method.search, config.trials, [])
    settings = {name: str(value) for name, value in asdict(config).items()}
    with Tracker(config.wandb, job.folder, config.name, settings) as tracker:
        study = open_study(**where(job), seed=config.seed, baselines=method.search.baselines())
        run_study(study, method.search, config.trials, [tracker.trial])
        settle(study)
        for trial in finished(study):  # those of other workers and of earlier starts
            tracker.trial(study, trial)
        tracker.files("study", "traces")
        chosen = method.tune(study)
        if chosen is None:
            return
        result = describe(job, method, study, chosen) | method.hold_out(chosen)
        _write(job, method, chosen, result)
        tracker.table(result)
        tracker.files("policy")


def where(job: Job) -> dict:
    """Where the study of a run is. In a database that others use too, its name tells what made the run."""
    if job.config.storage is None:
        return {"where": job.folder / "study.journal"}
    made = hashlib.sha256((job.folder / "run.json").read_bytes()).hexdigest()[:12]
    return {"where": job.config.storage, "name": f"{job.config.name}-{made}"}


class BackoffRun:
    """What the job asks of a method: a ``search``, and then these, in this order."""

    def __init__(self, job: Job):
        self.job, self.traces, self.label = job, trace(job), job.config.label
        self.search = make_search(job, self.traces)

    def tune(self, study) -> Chosen | None:
        """The finalist that live runs on the tuning prompts like best; None, and a word about it, when none can win."""
        self.tried = finalists(study, 3)
        chosen = tune_live(self.job, self.search, self.tried)
        if chosen is None:
            console.print(f"[bold]{_unreachable(self.job, self.search)}[/bold]")
        return chosen

    def predicted(self, chosen: Chosen) -> dict:
        """What replay says of it, and of all that can be had."""
        front = []
        if self.job.config.frontier:
            front = self.search.front([*self.search.baselines(), *(trial.params for trial in self.tried)])
        return {
            "front": front,
            "goal": {"target_speedup": self.job.goal.speedup}
            if self.job.goal.budget is None
            else {"quality_budget": self.job.goal.budget},
            "replay": {"live_speedup_over_replayed": chosen.faster, "live_loss_over_replayed": chosen.worse},
            "frontier": {
                "policy": self.search.curve(chosen.policy).tolist(),
                "random": self.search.random_curve().tolist(),
                "front": [[point["speedup"], point["loss"]] for point in front],
            },
        }

    def hold_out(self, chosen: Chosen) -> dict:
        """What the held-out prompts say of it and of its controls, and before them the promise."""
        job, config = self.job, self.job.config
        promise = certification(job, self.search, chosen) if config.certify else None
        alone = self.traces.of({p.id for p in job.splits["fit"]}, "large")
        length, _ = best_length(alone, job.cost, config.max_new_tokens)
        result = hold_out(job, self.search, chosen, length)
        if promise is None:
            return result
        what = [] if promise["chosen"] is not None else [instead(result["methods"])]
        return result | {"certificate": promise, "verdict": " ".join([promise["claim"], *what, result["verdict"]])}

    def provenance(self, chosen: Chosen) -> dict:
        """What a decoder has to know besides the policy."""
        return {"role": "handoff"}


METHODS = {"backoff": BackoffRun, "speculative": SpeculativeRun}


def trace(job: Job) -> Traces:
    """The traces of the fitting and tuning prompts, collected and then explored with a first policy, or read."""
    config, prompts = job.config, job.splits["fit"] + job.splits["tune"]
    description = about(config, job.small, job.large, job.splits)
    if config.traces is not None:
        return given(config.traces, description)
    folder = job.folder / "traces"
    how = prompts, folder, config.max_new_tokens, config.seed
    collect(job.small, job.large, *how, description | {"seed": config.seed})
    traces = read_traces(folder)
    policy = make_search(job, traces.where(traces["trajectory"] != "policy")).first()
    explore(job.small, job.large, policy, *how)
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


def describe(job: Job, method, study, chosen) -> dict:
    """The part of the result that is known before the hold-out is touched."""
    policy, config = chosen.policy, job.config
    weights = getattr(policy, "coef_", None)
    return {
        "name": config.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(config),
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
            for t in finished(study)
        ],
        "chosen_trial": chosen.trial,
    } | method.predicted(chosen)


def _write(job: Job, method, chosen, result: dict) -> None:
    _save(job, method, chosen, result)
    atomic.write_json(job.folder / "result.json", result)
    figure.draw(result, job.folder / "frontier.png")
    report.write_html(result, job.folder / "report.html")
    tables.print_table(result, console)
    console.print(f"[bold]{result['verdict']}[/bold]")
    console.print(f"wrote {job.folder}/policy.json, report.html, frontier.png, result.json")


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
