"""The setting of the Backoff Decoding experiment, most of it from a finished run: models, traces, prompts, costs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from decoding import LM
from decoding.cost.costs import ModelCosts
from experiments.backoff_tables.policies import Fits
from train.common.load_run import FinishedRun
from train.data.prompts import Prompt
from train.traces.handoff_traces import Traces


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
    """what the texts in the folder are of"""


def prepare(config) -> Setting:
    """Check everything, load the models, fit nothing yet. ValueError or OSError, one sentence, for wrong input."""
    from decoding.models.defaults import load_model
    from decoding.models.lm import check_compatible
    from experiments.shared.unseen_prompts import shortest_first, unseen_prompts
    from train.common.load_run import load_run

    _check(config)
    run = load_run(config.run)
    prompts = shortest_first(unseen_prompts(run)[: config.limit])
    models = [run.small, run.large]
    if config.middle is not None:
        models.insert(1, load_model("middle", config.middle, run.settings.device, run.settings.dtype))
        check_compatible(models)
    folder = config.output / (config.run.resolve().name if config.name is None else config.name)
    about = _about(folder, config, models)
    cost = _cost(folder, config, run, models)
    fits = [_fits(config, run, run.traces)]
    if config.middle is not None:
        fits.append(_fits(config, run, _middle_traces(folder, run, models[1])))
    return Setting(folder, models, cost, fits, prompts, run.new, _exact_draft(run, cost), about)


def _check(config) -> None:
    from experiments.backoff_tables.policies import METHODS

    unknown = [name for name in config.methods if name not in METHODS]
    if unknown:
        raise ValueError(f"no method {unknown[0]!r}; the known ones are {', '.join(METHODS)}")
    three = [name for name in config.methods if METHODS[name].three]
    if three and config.middle is None:
        raise ValueError(f"the method {three[0]} needs a third model; give --middle")
    wrong = [rate for rate in config.rates if not 0 < rate < 1]
    if wrong or not config.rates:
        raise ValueError(f"--rates are shares between 0 and 1, not {list(config.rates)}")
    if config.limit < 1 or config.batch < 1:
        raise ValueError(f"--limit and --batch must be at least 1, not {config.limit} and {config.batch}")
    if not 0 < config.kl_quantile < 1:
        raise ValueError(f"--kl-quantile must be between 0 and 1, not {config.kl_quantile:g}")


def _about(folder: Path, config, models: list[LM]) -> dict:
    """What texts depend on besides method and rate. ValueError when the folder holds texts of something else."""
    path, policy = folder / "setting.json", (config.run / "policy.json").read_bytes()
    now = {
        "run": hashlib.sha256(policy).hexdigest()[:16],
        "models": [lm.identity() for lm in models],
        "label": {"nats": config.kl_cut, "quantile": config.kl_quantile},
        "limit": config.limit,
        "batch": config.batch,
    }
    before = json.loads(path.read_text()) if path.exists() else now
    differing = [key for key, value in now.items() if before.get(key) != value]
    if differing:
        raise ValueError(f"{folder} holds texts of another {', '.join(differing)}; use another --name or delete it")
    return now


def _cost(folder: Path, config, run: FinishedRun, models: list[LM]) -> ModelCosts:
    """The run's own costs; measured anew where asked, or with a model that the run did not time."""
    from train.common.preparation import timing_table

    if config.middle is None and not config.retime:
        return run.cost
    return timing_table(folder, models)


def _fits(config, run: FinishedRun, traces: Traces) -> Fits:
    """Policies to fit on all traces of the fit split and to calibrate on the hand-off traces of the tune split."""
    from policies.kinds.learned import LearnedPolicy
    from train.search.backoff import FEATURE_SETS

    policy, groups = run.policy, run.policy.provenance["groups"]
    names = policy.names if isinstance(policy, LearnedPolicy) else FEATURE_SETS["confidence+history"]
    fit = traces.where(np.isin(traces["group"], groups["fit"]))
    tune = traces.where(np.isin(traces["group"], groups["tune"]) & (traces["trajectory"] != "large"))
    cut = float(np.quantile(fit["kl"], config.kl_quantile)) if config.kl_cut is None else config.kl_cut
    return Fits(fit, tune, names, run.result.chosen.params.get("C", 0.1), cut, policy.classes)


def _middle_traces(folder: Path, run: FinishedRun, middle: LM) -> Traces:
    """Traces of the middle and the large model on the prompts of the run's own traces."""
    from train.data.prompts import load_prompts
    from train.traces.collect_handoff import collect
    from train.traces.handoff_traces import read_traces

    known = set(run.traces["prompt"].tolist())
    prompts = [p for p in load_prompts(run.settings.prompts, run.large.tokenizer, 10_000) if p.id in known]
    about = {"models": [middle.identity(), run.large.identity()], "prompts": [p.id for p in prompts], "new": run.new}
    collect(middle, run.large, prompts, folder / "traces-middle", run.new, 0, about)
    return read_traces(folder / "traces-middle")


def _exact_draft(run: FinishedRun, cost: ModelCosts) -> tuple[int, float]:
    """(best length, replayed speedup) of exact speculative decoding, on the run's fit split."""
    from train.replay.backoff import best_length

    fit = np.isin(run.traces["group"], run.policy.provenance["groups"]["fit"])
    return best_length(run.traces.where(fit & (run.traces["trajectory"] == "large")), cost, run.new)
