"""The setting of the Backoff Decoding experiment, most of it from a finished run: models, traces, prompts, costs."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from decoding import LM
from decoding.cli.generation_config import without
from decoding.cost.costs import ModelCosts
from decoding.models.defaults import load_model
from decoding.models.vocabulary import check_compatible
from experiments.backoff_tables.policies import METHODS, Fits
from experiments.shared.unseen_prompts import shortest_first, unseen_prompts
from policies.kinds.learned import LearnedPolicy
from train.common import run_folder
from train.common.cli import at_least
from train.common.load_run import FinishedRun, load_run, refuse_drawn
from train.common.preparation import timing_table
from train.data.prompts import Prompt, prompts_for
from train.quality.metric import QualityMetric
from train.replay.backoff import best_length
from train.search.backoff import FEATURE_SETS
from train.traces.collect_handoff import collect
from train.traces.handoff_traces import Traces, read_traces


@dataclass
class Setting:
    """Everything the steps share; ``models`` are cheapest first."""

    folder: Path
    models: list[LM]
    cost: ModelCosts
    fits: list[Fits]
    prompts: list[Prompt]
    new: int
    draft: tuple[int, float]
    """length and replayed speedup of exact speculative decoding at its best length"""
    about: dict
    """what the texts in the folder depend on besides method and rate"""

    @cached_property
    def metric(self) -> QualityMetric:
        """Guarded and plain regret."""
        return QualityMetric(self.models[-1], budget=self.new)


def prepare(config) -> Setting:
    """Check everything, load the models, fit nothing yet. ValueError or OSError, one sentence, for wrong input."""
    _check(config)
    run = load_run(config.run, config.grader)
    refuse_drawn(config.run, run.settings)
    prompts = shortest_first(unseen_prompts(run)[: config.limit])
    models, traces = [run.small, run.large], [run.traces]
    if config.middle is not None:
        dtype = run.settings.dtypes.of("large")
        models.insert(1, load_model("middle", config.middle, run.settings.device, dtype, run.settings.backend))
        without(models[1:2], run.settings.ignore_generation_config)
        check_compatible(models)
    folder = config.output / (config.run.resolve().name if config.name is None else config.name)
    about = {
        "policy": hashlib.sha256((config.run / "policy.json").read_bytes()).hexdigest()[:16],
        "models": [lm.identity() for lm in models],
        **{name: getattr(config, name) for name in ("kl_cut", "kl_quantile", "limit", "batch")},
    }
    run_folder.check(folder / "setting.json", about, config, f"use another --name or delete {folder}")
    if config.middle is not None:
        traces.append(_middle_traces(folder, run, models[1]))
    # The run did not time a model in the middle.
    cost = run.cost if config.middle is None and not config.retime else timing_table(folder, models)
    fits = [_fits(config, run, some) for some in traces]
    return Setting(folder, models, cost, fits, prompts, run.new, _exact_draft(run, cost), about)


def _check(config) -> None:
    unknown = [name for name in config.methods if name not in METHODS]
    if unknown:
        raise ValueError(f"no method {unknown[0]!r}; the known ones are {', '.join(METHODS)}")
    three = [name for name in config.methods if METHODS[name].three]
    if three and config.middle is None:
        raise ValueError(f"the method {three[0]} needs a third model; give --middle")
    if not config.rates or not all(0 < rate < 1 for rate in config.rates):
        raise ValueError(f"--rates are shares between 0 and 1, not {list(config.rates)}")
    at_least(config, {"limit": 1, "batch": 1})
    if not 0 < config.kl_quantile < 1:
        raise ValueError(f"--kl-quantile must be between 0 and 1, not {config.kl_quantile:g}")


def _fits(config, run: FinishedRun, traces: Traces) -> Fits:
    """Policies to fit on all traces of the fit split and to calibrate on the hand-off traces of the tune split."""
    policy, groups = run.policy, run.policy.provenance["groups"]
    names = policy.names if isinstance(policy, LearnedPolicy) else FEATURE_SETS["confidence+history"]
    fit = traces.where(np.isin(traces["group"], groups["fit"]))
    tune = traces.where(np.isin(traces["group"], groups["tune"]) & (traces["trajectory"] != "large"))
    cut = float(np.quantile(fit["kl"], config.kl_quantile)) if config.kl_cut is None else config.kl_cut
    return Fits(fit, tune, names, run.result.chosen.params.get("C", 0.1), cut, policy.classes)


def _middle_traces(folder: Path, run: FinishedRun, middle: LM) -> Traces:
    """Traces of the middle and the large model on the prompts of the run's own traces."""
    known = set(run.traces["prompt"].tolist())
    prompts = [p for p in prompts_for(run.settings, run.models, 10_000) if p.id in known]
    about = {"models": [middle.identity(), run.large.identity()], "prompts": [p.id for p in prompts], "new": run.new}
    collect(middle, run.large, prompts, folder / "traces-middle", run.new, 0, about)
    return read_traces(folder / "traces-middle")


def _exact_draft(run: FinishedRun, cost: ModelCosts) -> tuple[int, float]:
    """(best length, replayed speedup) of exact speculative decoding, on the run's fit split."""
    fit = np.isin(run.traces["group"], run.policy.provenance["groups"]["fit"])
    return best_length(run.traces.where(fit & (run.traces["trajectory"] == "large")), cost, run.new)
