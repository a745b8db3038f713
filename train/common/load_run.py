"""A finished run of the main job, read again: models, policy, prompts, traces and timing table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from decoding import LM
from decoding.cost.cache import read as read_costs
from decoding.cost.costs import ModelCosts
from decoding.models.defaults import load_model
from decoding.models.lm import check_compatible
from policies import Policy, load, token_classes
from train.common.result import Result, read_result
from train.common.run_folder import read_settings
from train.common.settings import FitPolicy
from train.data.prompts import Prompt, load_prompts
from train.data.splits import split_hash
from train.quality.metric import QualityMetric
from train.search.backoff import Search
from train.search.goal import Goal
from train.traces.handoff_traces import Traces, read_traces


@dataclass
class FinishedRun:
    """A run that has a policy."""

    folder: Path
    settings: FitPolicy
    result: Result
    small: LM
    large: LM
    policy: Policy
    """that of policy.json"""
    splits: dict[str, list[Prompt]]
    """the prompts of fit, tune and holdout"""

    @cached_property
    def cost(self) -> ModelCosts:
        return read_costs(self.folder / "cost.json")

    @cached_property
    def metric(self) -> QualityMetric:
        return QualityMetric(self.large, self.settings.grader)

    @property
    def goal(self) -> Goal:
        goal = self.result.goal
        return Goal(speedup=goal.get("target_speedup"), budget=goal.get("quality_budget"))

    @property
    def new(self) -> int:
        """tokens of an answer, at most"""
        return self.settings.max_new_tokens

    @property
    def trace_folder(self) -> Path:
        return self.settings.traces or self.folder / "traces"

    @cached_property
    def traces(self) -> Traces:
        return read_traces(self.trace_folder)

    def search(self, traces: Traces) -> Search:
        """What fits policies on ``traces`` and sets their thresholds by replay, as the run did."""
        how = {"kind": self.settings.policy, "label": self.settings.label, "seed": self.settings.seed}
        classes = token_classes(self.large.tokenizer)
        return Search.on(traces, self.splits, cost=self.cost, goal=self.goal, classes=classes, **how)


def load_run(folder: Path) -> FinishedRun:
    """The run in ``folder``. ValueError or OSError, one sentence, when it is not finished, or of another version, or
    its inputs changed."""
    for name in ("run.json", "cost.json", "result.json", "policy.json"):
        if not (folder / name).exists():
            raise ValueError(f"{folder} has no {name}; give the folder of a finished run of train/fit_policy.py")
    settings, result = read_settings(folder), read_result(folder)
    how = settings.device, settings.dtype
    small, large = load_model("small", settings.small, *how), load_model("large", settings.large, *how)
    check_compatible([small, large])
    policy = load(folder / "policy.json", models=[small.identity(), large.identity()])
    prompts = load_prompts(settings.prompts, large.tokenizer, settings.limit)
    groups = policy.provenance["groups"]
    splits = {name: [p for p in prompts if p.group in set(groups[name])] for name in ("fit", "tune", "holdout")}
    changed = [name for name, some in splits.items() if split_hash(some) != result.splits[name].hash]
    if changed:
        raise ValueError(f"the prompts of {folder} have changed ({', '.join(changed)}); tune a policy on these first")
    return FinishedRun(folder, settings, result, small, large, policy, splits)
