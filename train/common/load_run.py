"""A finished run of the main job, read again: models, policy, prompts, traces and timing table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from decoding import LM
from decoding.models.defaults import load_model
from decoding.models.lm import check_compatible
from policies import Policy, load, token_classes
from train.data.prompts import Prompt, load_prompts
from train.data.splits import split_hash
from train.quality.metric import QualityMetric
from train.replay.backoff import TimingTables
from train.search.backoff import Goal, Search
from train.traces.handoff_traces import Traces, read_traces


@dataclass
class FinishedRun:
    """A run that has a policy."""

    folder: Path
    settings: dict
    """those of train/fit_policy.py, as strings; None where there was none"""
    result: dict
    small: LM
    large: LM
    policy: Policy
    """that of policy.json"""
    splits: dict[str, list[Prompt]]
    """the prompts that were fitted on, tuned on and held out"""

    @cached_property
    def cost(self) -> TimingTables:
        return TimingTables(self.result["cost"]["small"], self.result["cost"]["large"])

    @cached_property
    def judge(self) -> QualityMetric:
        return QualityMetric(self.large, self.settings.get("grader"))

    @property
    def goal(self) -> Goal:
        goal = self.result["goal"]
        return Goal(speedup=goal.get("target_speedup"), budget=goal.get("quality_budget"))

    @property
    def new(self) -> int:
        """tokens of an answer, at most"""
        return int(self.settings["max_new_tokens"])

    @property
    def trace_folder(self) -> Path:
        given = self.settings["traces"]
        return self.folder / "traces" if given is None else Path(given)

    @cached_property
    def traces(self) -> Traces:
        return read_traces(self.trace_folder)

    def search(self, traces: Traces) -> Search:
        """What fits policies on ``traces`` and sets their thresholds by replay, as the run did."""
        how = {"kind": self.settings["policy"], "label": self.settings["label"], "seed": int(self.settings["seed"])}
        classes = token_classes(self.large.tokenizer)
        return Search.on(traces, self.splits, cost=self.cost, goal=self.goal, classes=classes, **how)


def load_run(folder: Path) -> FinishedRun:
    """The run in ``folder``. ValueError or OSError, one sentence, when it is not finished or its inputs changed."""
    for name in ("run.json", "result.json", "policy.json"):
        if not (folder / name).exists():
            raise ValueError(f"{folder} has no {name}; give the folder of a finished run of train/fit_policy.py")
    given = json.loads((folder / "run.json").read_text(encoding="utf-8"))["settings"]
    settings = {key: None if value == "None" else value for key, value in given.items()}
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    how = settings["device"], settings["dtype"]
    small, large = (load_model(name, settings[name], *how) for name in ("small", "large"))
    check_compatible([small, large])
    policy = load(folder / "policy.json", models=[small.identity(), large.identity()])
    limit = None if settings["limit"] is None else int(settings["limit"])
    prompts = load_prompts(settings["prompts"], large.tokenizer, limit)
    groups = policy.provenance["groups"]
    names = ("fit", "tune", "holdout")
    splits = {name: [p for p in prompts if p.group in set(groups[name])] for name in names}
    changed = [name for name in names if split_hash(splits[name]) != result["splits"][name]["hash"]]
    if changed:
        raise ValueError(f"the prompts of {folder} have changed ({', '.join(changed)}); tune a policy on these first")
    return FinishedRun(folder, settings, result, small, large, policy, splits)
