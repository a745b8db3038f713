"""Backoff Decoding's tables at the size reachable here: who should write the next token, at every share of large ones.

    python experiments/backoff.py runs/default --limit 96 --rates 0.2 0.4 0.6 0.8

The published way is a classifier that predicts from the small model alone whether KL(small || large) > T, its cut
calibrated. Beside it are what it imitates (the KL oracle), what would be best token by token (the regret oracle),
simple rules, a classifier of what handing on saves, and chance. Policies are fitted on the run's fit split and
calibrated on its tune split; texts are written live, on prompts of groups that the run has not seen. Time is priced at
a timing table, decisions included; that of oracles as if they knew for nothing. The same command goes on where it was
stopped, and more --rates and --methods may be added.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from train.common.cli import attempt
from train.common.progress import say


@dataclass
class BackoffTables:
    """Ways to hand tokens on from the small model to the large one, at several shares of large tokens."""

    run: Annotated[Path, tyro.conf.Positional]
    """folder of a finished run of train/fit_policy.py: its models, traces and splits are used"""
    limit: int = 96
    """prompts that the run has not seen, spread over their families"""
    rates: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    """shares of tokens to hand on"""
    methods: tuple[str, ...] = (
        "kl_logistic", "kl_mlp", "saving", "entropy", "top1", "periodic", "kl_oracle", "regret_oracle"
    )  # fmt: skip
    """what to compare with random hand-off, which always runs"""
    middle: str | None = None
    """folder, hub id or .gguf of a model between the two: adds hand-off among three"""
    kl_cut: float | None = None
    """nats of KL(small || large) above which the published label is 1 (default: --kl-quantile)"""
    kl_quantile: float = 0.5
    """the same cut as a quantile over the fit split"""
    retime: bool = False
    """measure the timing table anew instead of taking the run's (always so with --middle)"""
    batch: int = 16
    threads: int | None = None
    """CPU threads (default: torch's choice)"""
    name: str | None = None
    """name of the experiment (default: the run's)"""
    output: Path = Path("runs/backoff")
    """results go to OUTPUT/NAME: result.json, backoff.png, texts/"""


def main(config: BackoffTables) -> dict:
    import torch

    from experiments.backoff_tables.figure import draw
    from experiments.backoff_tables.setting import prepare
    from experiments.backoff_tables.table import show
    from train.common import atomic
    from train.common.cli import checking

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with checking():
        setting = prepare(config)
        decoders = decoders_of(config, setting)
        atomic.write_json(setting.folder / "setting.json", setting.about)
    result = measure(config, setting, decoders)
    atomic.write_json(setting.folder / "result.json", result)
    draw(result, setting.folder / "backoff.png")
    show(result)
    say(f"wrote {setting.folder}/result.json, backoff.png")
    return result


def decoders_of(config: BackoffTables, setting) -> dict[tuple[str, float], object]:
    """A decoder for every method and rate. ValueError when a label tells nothing apart."""
    from experiments.backoff_tables.policies import METHODS

    keys = dict.fromkeys(("random", *config.methods, *(k for k, m in METHODS.items() if m.three)))
    there = [key for key in keys if not METHODS[key].three or len(setting.models) == 3]
    made = {(k, rate): METHODS[k].decoder(setting.models, setting.fits, rate) for k in there for rate in config.rates}
    for decoder in made.values():
        for policy in decoder.policies:
            policy.to(setting.models[-1].device)
    return made


def measure(config: BackoffTables, setting, decoders: dict) -> dict:
    """Write, judge and sum up."""
    from decoding import Autoregressive, Backoff
    from experiments.backoff_tables.policies import METHODS
    from experiments.backoff_tables.table import summary
    from experiments.backoff_tables.texts import columns, texts
    from policies import Rule
    from train.evaluation.live import LARGE

    pair, prompts = [setting.models[0], setting.models[-1]], setting.prompts
    first = texts(setting, LARGE, Autoregressive(pair[1]), config.batch, None)
    references = [row["answer"] for row in first]
    small = texts(setting, "small", Backoff(pair, Rule.never(), verify_eos=False), config.batch, references)
    ends = [setting.cost.small, setting.cost.large]
    measured = {LARGE: columns(first, prompts, ends[1:], ()), "small": columns(small, prompts, ends, (0.0,))}
    spent = decisions(setting, decoders)
    for (key, rate), decoder in decoders.items():
        rows = texts(setting, f"{key}-{rate:g}", decoder, config.batch, references)
        tables = setting.cost.tables if METHODS[key].three else ends
        seconds = [share * table[1] for share, table in zip(spent[key], tables, strict=False)]
        measured[f"{key}-{rate:g}"] = columns(rows, prompts, tables, seconds)
    chance = [measured[name] for name in (LARGE, "small", *(f"random-{rate:g}" for rate in config.rates))]
    rows = [{"key": "small", "label": "small model alone", "rate": 0.0} | summary(measured, "small", chance)]
    for key, rate in decoders:
        about = {"key": key, "label": METHODS[key].label, "rate": rate, "decision_share": spent[key][0]}
        rows.append(about | summary(measured, f"{key}-{rate:g}", chance))
    return described(config, setting) | {"methods": rows}


def decisions(setting, decoders: dict) -> dict[str, list[float]]:
    """Per method the cost of each decision, as a share of a token of the model that it watches; kept once measured."""
    import json

    from experiments.backoff_tables.oracles import Oracle
    from experiments.backoff_tables.policies import METHODS
    from experiments.shared.decision_cost import decision_share
    from train.common import atomic

    path = setting.folder / "decisions.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for (key, _), decoder in decoders.items():
        if key in known:
            continue
        watched = setting.models if METHODS[key].three else setting.models[:1]
        known[key] = [
            0.0 if isinstance(decoder, Oracle) else decision_share(lm, policy, setting.prompts[:4], setting.new)
            for lm, policy in zip(watched, decoder.policies, strict=False)
        ]
        atomic.write_json(path, known)
    return known


def described(config: BackoffTables, setting) -> dict:
    """What the figures are of, and what they do not say."""
    from train.search.labels import KL_CUT

    fits, (length, speed) = setting.fits[0], setting.draft
    share = float((fits.fit["kl"] > KL_CUT).mean())
    notes = [
        f"{len(setting.prompts)} unseen prompts; the published label is KL > {fits.cut:.3g} nats, true of "
        f"{(fits.fit['kl'] > fits.cut).mean():.0%} of the fit split (KL > {KL_CUT}: {share:.0%}).",
        f"Exact speculative decoding at its best length, {length}: {speed:.2f}x at loss 0 (replayed, fit split).",
        "Oracles ask the large model about every token; their price leaves that out.",
    ]
    if len(setting.models) == 3:
        notes.append(
            "Three models: each hand-off is fitted and calibrated on its own traces against the large model, at the "
            "square root of the rate; the second in truth decides only where the first handed on."
        )
    return {
        "name": setting.folder.name,
        "models": [lm.name for lm in setting.models],
        "prompts": len(setting.prompts),
        "rates": list(config.rates),
        "kl": {"cut": fits.cut, "above": float((fits.fit["kl"] > fits.cut).mean()), "above_published": share},
        "speculative": {"length": length, "speedup": speed},
        "tables": setting.cost.tables,
        "notes": notes,
    }


def command(argv: list[str] | None = None) -> int:
    """0 when it is done, 2 after one sentence about what was wrong with the input."""
    config = tyro.cli(BackoffTables, args=argv, description=__doc__)
    return attempt("backoff", lambda: main(config), config.output)


if __name__ == "__main__":
    sys.exit(command())
