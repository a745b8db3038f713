"""The main job step by step; ``train/fit_policy.py`` is its command line."""

from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime

import numpy as np
import optuna

from policies import Rule
from policies.storage import atomic
from train.common.atomic import fingerprint
from train.common.cli import checking
from train.common.job import Job, Tuned
from train.common.machine import machine
from train.common.preparation import prepare
from train.common.presets import NOTES
from train.common.progress import log_to, say
from train.common.result import Holdout, MethodRow, PolicySummary, Result, SplitSummary, TrialRow, write_result
from train.common.settings import FitPolicy
from train.common.tracking import Tracker
from train.data.splits import split_hash
from train.methods import tuning_method
from train.methods.base import TuningMethod
from train.reports import figure, page, tables, terminal
from train.search.study import complete, finished, join_study, open_study, pruned, run_study, wait_for_trials

PROVENANCE = (
    "goal",
    "machine",
    "splits",
    "cost",
    "verdict",
    "comparison",
    "methods",
    "certificate",
    "traffic",
    "sampling",
    "batch_size",
)
"""what a policy says of its run"""


def run(settings: FitPolicy) -> None:
    """Traces, search, live correction, hold-out, report. Raises InputError before any work is done."""
    with checking():
        job = prepare(settings)
        study = join_study(**where(job)) if settings.join else None
    with log_to(job.folder / "log.txt"), closing(job.crew):
        with checking():
            method = tuning_method(settings.method)(job)
        if study is None:
            _tune(job, method)
            job.crew.clear(job.folder)
        else:
            run_study(study, method.search, settings.trials, [])


def _tune(job: Job, method: TuningMethod) -> None:
    settings = job.settings
    with Tracker(settings.wandb, job.folder, settings.name, asdict(settings)) as tracker:
        study = open_study(**where(job), seed=settings.seed, baselines=method.search.baselines())
        # Those of other workers and of earlier starts too: this process alone writes to the run of W&B.
        track = lambda study, _=None: tracker.trials(study, finished(study))  # noqa: E731
        run_study(study, method.search, settings.trials, [track])
        wait_for_trials(study)
        track(study)
        tracker.files("study", "traces")
        tuned = method.tune(study)
        if tuned is None:
            return
        holdout = method.measure_holdout(tuned)
        holdout.verdict += told_apart(job, holdout.methods)
        if settings.preset is not None:
            holdout.verdict += f" {NOTES[settings.preset]}"
        result = describe(job, method, study, tuned, holdout)
        _write(job, method, tuned, result)
        tracker.table(result.to_json())
        tracker.files("policy")


def told_apart(job: Job, methods: list[MethodRow]) -> str:
    """A warning about a grader that does not tell the models apart: it says as little about what lies between them."""
    small = next(row for row in methods if row.key == "small")
    low, high = small.loss_interval
    if job.metric.grader is None or low > 0:
        return ""
    return (
        f" The grader does not tell the small model from the large one on these prompts (it loses {small.loss:.3f}, "
        f"95 % interval {low:.3f} to {high:.3f}), so what it says of the others is no evidence."
    )


def where(job: Job) -> dict:
    """Where the study of a run is. In a database that others use too, its name tells what made the run."""
    if job.settings.storage is None:
        return {"where": job.folder / "study.journal", "run": fingerprint(job.folder)}
    return {"where": job.settings.storage, "name": f"{job.settings.name}-{fingerprint(job.folder)}"}


def describe(job: Job, method: TuningMethod, study: optuna.Study, tuned: Tuned, holdout: Holdout) -> Result:
    """All that is known at the end."""
    return Result(
        name=job.settings.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine(job.settings.device, [lm.dtype for lm in job.models]),
        loss_name=job.metric.loss_name,
        sampling=None if job.sampling.greedy else asdict(job.sampling),
        batch_size=job.settings.batch_size,
        method=job.settings.method,
        plane=list(method.plane),
        threshold_note=method.threshold_note,
        models=[lm.identity() for lm in job.models],
        policy=_policy(method, tuned),
        splits={
            name: SplitSummary(len(prompts), len({p.group for p in prompts}), split_hash(prompts))
            for name, prompts in job.splits.items()
        },
        cost={"small": job.cost.small, "large": job.cost.large},
        trials=[_trial(trial) for trial in complete(study)],
        pruned=len(pruned(study)),
        chosen_trial=tuned.trial,
        run=fingerprint(job.folder),
        **vars(method.predicted(tuned)),
        **vars(holdout),
    )


def _policy(method: TuningMethod, tuned: Tuned) -> PolicySummary:
    policy, weights = tuned.policy, getattr(tuned.policy, "coef_", None)
    return PolicySummary(
        describe=policy.describe(),
        kind=policy.kind,
        label=method.label,
        threshold=float(policy.threshold),
        features=list(policy.names),
        quantile=tuned.quantile,
        weights=None if weights is None else dict(zip(policy.names, np.ravel(weights).tolist(), strict=True)),
    )


def _trial(trial: optuna.trial.FrozenTrial) -> TrialRow:
    feasible = all(value <= 0 for value in trial.constraints.values())
    found = {name: trial.user_attrs.get(name) for name in ("loss", "speedup")}
    return TrialRow(trial.number, trial.params, feasible, **found)


def _write(job: Job, method: TuningMethod, tuned: Tuned, result: Result) -> None:
    _save(job, method, tuned, result)
    write_result(result, job.folder)
    shown = result.to_json()
    figure.draw(shown, job.folder / "frontier.png")
    page.write_html(shown, job.folder / "report.html")
    atomic.write(job.folder / "methods.md", tables.table(shown).encode())
    terminal.print_table(shown)
    say(result.verdict, style="bold")
    for line in filter(None, (tables.thought_line(shown), tables.grading_line(shown))):
        say(line)
    say(f"wrote {job.folder}/policy.json, report.html, methods.md, frontier.png, result.json")


def _save(job: Job, method: TuningMethod, tuned: Tuned, result: Result) -> None:
    """Write policy.json with all that is known of it.

    Where no certificate could be had, policy.json escalates every token, and what was tuned is in uncertified.json.
    """
    known = result.to_json()
    provenance = {key: known[key] for key in PROVENANCE if key in known}
    provenance["groups"] = {name: sorted({p.group for p in prompts}) for name, prompts in job.splits.items()}
    provenance |= {"label": method.label} | method.provenance(tuned)
    save = {"models": result.models, "provenance": provenance}
    if result.certificate is None or result.certificate.chosen is not None:
        tuned.policy.save(job.folder / "policy.json", **save)
    else:
        lossless = {key: value for key, value in provenance.items() if key not in ("traffic", "curve")}
        Rule.always().save(job.folder / "policy.json", result.models, lossless)
        tuned.policy.save(job.folder / "uncertified.json", **save)
