"""A finished run of the main job, read again: models, policy, prompts, traces and timing table."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from decoding.cost import cache
from decoding.cost.costs import ModelCosts
from policies import Policy, load
from policies.storage.documents import FileError
from train.common.atomic import fingerprint, plain
from train.common.job import Job
from train.common.preparation import load_pair, make_splits, sampled_baseline
from train.common.result import Result, read_result
from train.common.run_folder import AGAIN, read_settings
from train.common.schema import checked
from train.common.settings import FitPolicy
from train.data.splits import split_hash
from train.quality.metric import QualityMetric
from train.search.goal import Goal
from train.traces.handoff_traces import Traces, read_traces

SPLITS = ("fit", "tune", "holdout")


@dataclass
class FinishedRun(Job):
    """The job of a run that has a policy, with the splits fit, tune and holdout."""

    result: Result
    policy: Policy  # that of policy.json

    @property
    def trace_folder(self) -> Path:
        return self.settings.traces or self.folder / "traces"

    @cached_property
    def traces(self) -> Traces:
        return read_traces(self.trace_folder)


def load_run(folder: Path, grader: str | None = None) -> FinishedRun:
    """The run in ``folder``. ValueError or OSError, one sentence, when it is not finished, or of another version, or
    its inputs changed.

    grader: the user's own word for a grader module:function of the run, which is code: a folder alone runs none.
    """
    for name in ("run.json", "cost.json", "result.json", "policy.json"):
        if not (folder / name).exists():
            raise ValueError(f"{folder} has no {name}; give the folder of a finished run of train/fit_policy.py")
    settings, result = read_settings(folder), read_result(folder)
    _check_grader(folder, settings.grader, grader)
    goal = Goal(result.goal.get("target_speedup"), result.goal.get("quality_budget"))
    small, large = load_pair(settings, settings.drawing)
    policy = load(folder / "policy.json", models=[small.identity(), large.identity()])
    cost = cache.read(folder / "cost.json")
    _check_one_run(folder, result, policy, cost)
    checked(_Provenance, policy.provenance, folder / "policy.json", AGAIN)
    made = make_splits(settings, small, large)
    splits = {name: made[name] for name in SPLITS}
    changed = [name for name, some in splits.items() if split_hash(some) != result.splits[name].hash]
    if changed:
        raise ValueError(f"the prompts of {folder} have changed ({', '.join(changed)}); tune a policy on these first")
    metric = QualityMetric(large, settings.grader, settings.max_new_tokens, sampled_baseline(settings, large))
    return FinishedRun(settings, goal, folder, small, large, splits, cost, metric, result, policy)


def refuse_drawn(folder: Path, settings: FitPolicy) -> None:
    """ValueError where a run was tuned at a temperature, for what only knows greedy texts."""
    if not settings.drawing.greedy:
        raise ValueError(f"{folder} was tuned at a temperature, and this is of greedy texts; give a run without one")


def _check_grader(folder: Path, tuned: str | None, said: str | None) -> None:
    if tuned is not None and ":" in tuned and said != tuned:
        raise ValueError(f"{folder} was tuned with a grader, which is code; if you trust it, add --grader {tuned}")
    if said not in (None, tuned):
        how = "without a grader" if tuned is None else f"with the grader {tuned}"
        raise ValueError(f"{folder} was tuned {how}; leave out --grader {said}")


@dataclass
class _Provenance:
    groups: dict[str, list[str]]


def _check_one_run(folder: Path, result: Result, policy: Policy, cost: ModelCosts) -> None:
    """FileError for a file of another run in ``folder``: no two runs measure the same seconds."""
    known = {"small": cost.small, "large": cost.large}
    of_others = {
        "result.json": result.run not in (None, fingerprint(folder)) or not set(SPLITS) <= result.splits.keys(),
        "cost.json": result.cost != known,
        "policy.json": policy.provenance.get("cost", plain(known)) != plain(known),
    }
    for name, other in of_others.items():
        if other:
            raise FileError(folder / name, "it is not of the run that the other files are of", AGAIN)
