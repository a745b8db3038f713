"""What the Backoff Decoding experiment takes over from a finished run: models, traces, prompts, timing table."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from decoding import LM
from experiments.backoff_tables.policies import Fits
from train.data.prompts import Prompt
from train.traces.handoff_traces import Traces

console = Console()


@dataclass
class Setting:
    """Everything the steps share; ``models`` and ``tables`` (seconds by tokens read) are cheapest first."""

    folder: Path
    models: list[LM]
    tables: list[dict]
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
    from experiments.handoff import unseen
    from policies import load
    from train.traces.handoff_traces import read_traces

    _check(config)
    settings = json.loads((config.run / "run.json").read_text())["settings"]
    given = {key: None if settings[key] == "None" else settings[key] for key in ("small", "large", "prompts")}
    how = settings["device"], settings["dtype"]
    models = [load_model("small", given["small"], *how), load_model("large", given["large"], *how)]
    policy = load(config.run / "policy.json", models=[lm.identity() for lm in models])
    groups = policy.provenance["groups"]
    traces = read_traces(config.run / "traces")
    prompts = unseen(models[-1], groups, config.limit, given["prompts"])
    if not prompts:
        raise ValueError(f"the run in {config.run} has used every group of prompts; tune one with a smaller --limit")
    if config.middle is not None:
        models.insert(1, load_model("middle", config.middle, *how))
        check_compatible(models)
    new = int(settings["max_new_tokens"])
    folder = config.output / (config.run.resolve().name if config.name is None else config.name)
    about = _about(folder, config, models)
    tables = _tables(folder, config, models)
    fits = [_fits(config, policy, traces, groups)]
    if config.middle is not None:
        fits.append(_fits(config, policy, _middle(folder, models, traces, given["prompts"], new), groups))
    return Setting(folder, models, tables, fits, prompts, new, _draft(traces, groups, tables, new), about)


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
    for name in ("run.json", "result.json", "policy.json"):
        if not (config.run / name).is_file():
            raise ValueError(f"{config.run} is not a finished run of train/fit_policy.py: it has no {name}")


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


def _tables(folder: Path, config, models: list[LM]) -> list[dict]:
    """The run's own timing table; a new one where asked, or for models that the run did not time."""
    from decoding.cost.timing import measure
    from train.common import atomic

    if config.middle is None and not config.retime:
        cost = json.loads((config.run / "result.json").read_text())["cost"]
        return [cost["small"], cost["large"]]
    path = folder / "cost.json"
    if not path.exists():
        with console.status("timing the models"):
            atomic.write_json(path, [{str(n): s for n, s in table.items()} for table in measure(models)])
    return json.loads(path.read_text())


def _fits(config, policy, traces: Traces, groups: dict[str, list[str]]) -> Fits:
    """Fitted on the run's fit split, whatever wrote the text; calibrated on what hand-off wrote of its tune split."""
    from policies.kinds.learned import LearnedPolicy
    from train.search.backoff import FEATURE_SETS

    result = json.loads((config.run / "result.json").read_text())
    trial = next(t for t in result["trials"] if t["number"] == result["chosen_trial"])
    names = policy.names if isinstance(policy, LearnedPolicy) else FEATURE_SETS["confidence+history"]
    fit = traces.where(np.isin(traces["group"], groups["fit"]))
    tune = traces.where(np.isin(traces["group"], groups["tune"]) & (traces["trajectory"] != "large"))
    cut = float(np.quantile(fit["kl"], config.kl_quantile)) if config.kl_cut is None else config.kl_cut
    return Fits(fit, tune, names, trial["params"].get("C", 0.1), cut, policy.classes)


def _middle(folder: Path, models: list[LM], traces: Traces, source: str | None, new: int) -> Traces:
    """Traces of the middle and the large model on the prompts that the run's own traces are of."""
    from train.data.prompts import load_prompts
    from train.traces.collect_handoff import collect
    from train.traces.handoff_traces import read_traces

    _, middle, large = models
    known = set(traces["prompt"].tolist())
    prompts = [p for p in load_prompts(source, large.tokenizer, 10_000) if p.id in known]
    about = {"models": [middle.identity(), large.identity()], "prompts": [p.id for p in prompts], "new": new}
    collect(middle, large, prompts, folder / "traces-middle", new, 0, about)
    return read_traces(folder / "traces-middle")


def _draft(traces: Traces, groups: dict[str, list[str]], tables: list[dict], new: int) -> tuple[int, float]:
    from train.replay.backoff import TimingTables, best_length

    keep = np.isin(traces["group"], groups["fit"]) & (traces["trajectory"] == "large")
    return best_length(traces.where(keep), TimingTables(tables[0], tables[-1]), new)
