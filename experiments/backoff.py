"""The Backoff Decoding tables on a small pair: loss and speed of hand-off policies at several shares of large tokens.

    python experiments/backoff.py runs/default --limit 96 --rates 0.2 0.4 0.6 0.8

The published policy is a classifier that predicts from the small model alone whether KL(small || large) > T, with a
calibrated cut. It is compared with its own label (the KL oracle), the best choice token by token (the regret oracle),
simple rules, a classifier of the loss that escalation saves, and random hand-off. Policies are fitted on the run's fit
split and calibrated on its tune split. Texts are written live, on prompts of groups that the run has not used. Time is
priced at measured costs, decisions included; the large model's work for the oracles' answers is left out. The same
command goes on after a stop, and more --rates and --methods may be added.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from decoding import Autoregressive, Backoff
from decoding.cli.options import use
from decoding.cost.costs import ModelCosts
from experiments.backoff_tables.figure import draw
from experiments.backoff_tables.oracles import Oracle
from experiments.backoff_tables.policies import METHODS
from experiments.backoff_tables.setting import Setting, prepare
from experiments.backoff_tables.table import show, summarize
from experiments.shared.decision_cost import decision_share
from experiments.shared.handoff_texts import price_texts, write_texts
from policies import Rule
from policies.storage import documents
from train.common import atomic, run_folder
from train.common.cli import checking, command
from train.common.progress import say
from train.evaluation.live import LARGE
from train.search.labels import KL_CUT
from train.workers.blueprint import Blueprint


@dataclass
class BackoffTables:
    """Policies that escalate tokens from the small model to the large one, at several shares of large tokens."""

    run: Annotated[Path, tyro.conf.Positional]
    """folder of a finished run of train/fit_policy.py: its models, traces and splits are used"""
    limit: int = 96
    """prompts that the run has not used, spread over their families"""
    rates: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    """shares of tokens to escalate"""
    methods: tuple[str, ...] = (
        "kl_logistic", "kl_mlp", "saving", "entropy", "top1", "periodic", "kl_oracle", "regret_oracle"
    )  # fmt: skip
    """methods to compare with random hand-off, which always runs"""
    middle: str | None = None
    """folder, hub id or .gguf of a model between the two: adds hand-off among three"""
    kl_cut: float | None = None
    """nats of KL(small || large) above which the published label is 1 (default: --kl-quantile)"""
    kl_quantile: float = 0.5
    """the same cut as a quantile over the fit split"""
    retime: bool = False
    """measure costs anew instead of taking the run's (always so with --middle)"""
    batch: int = 16
    grader: str | None = None
    """the grader of the run, where it is a module:function of yours: such code is run at your word only"""
    threads: int | None = None
    """CPU threads (default: torch's choice)"""
    name: str | None = None
    """name of the experiment (default: the run's)"""
    output: Path = Path("runs/backoff")
    """results go to OUTPUT/NAME: result.json, backoff.png, texts/"""


def run(config: BackoffTables) -> dict:
    """Measure what is not measured yet and write the result. Raises InputError before any work is done."""
    with checking():
        use("cpu", config.threads)
        setting = prepare(config)
        decoders = build_decoders(config, setting)
        run_folder.remember(setting.folder / "setting.json", setting.about)
    result = describe(config, setting) | {"methods": measure(config, setting, decoders)}
    atomic.write_json(setting.folder / "result.json", result)
    draw(result, setting.folder / "backoff.png")
    show(result)
    say(f"wrote {setting.folder}/result.json, backoff.png")
    return result


def build_decoders(config: BackoffTables, setting: Setting) -> dict[tuple[str, float], Backoff]:
    """A decoder for every method and rate. ValueError when a label tells nothing apart."""
    keys = dict.fromkeys(("random", *config.methods, *(k for k, m in METHODS.items() if m.three)))
    there = [key for key in keys if not METHODS[key].three or len(setting.models) == 3]
    made = {(k, rate): METHODS[k].decoder(setting.models, setting.fits, rate) for k in there for rate in config.rates}
    for decoder in made.values():
        for policy in decoder.policies:
            policy.to(setting.models[-1].device)
    return made


def measure(config: BackoffTables, setting: Setting, decoders: dict[tuple[str, float], Backoff]) -> list[dict]:
    """Write and price the texts of all decoders: a row for each."""
    pair, prompts = [setting.models[0], setting.models[-1]], setting.prompts

    def texts(name: str, decoder, *reference) -> list[dict]:
        path = setting.folder / "texts" / f"{name}.jsonl"
        return write_texts(Blueprint(decoder), pair, prompts, path, setting.new, config.batch, *reference)

    first = texts(LARGE, Autoregressive(pair[1]))
    reference = setting.metric, [row["answer"] for row in first]
    small = texts("small", Backoff(pair, Rule.never(), verify_eos=False), *reference)
    ends = ModelCosts((setting.cost.small, setting.cost.large))
    alone = ModelCosts((setting.cost.large,))
    measured = {LARGE: price_texts(first, prompts, alone, ()), "small": price_texts(small, prompts, ends, (0.0,))}
    spent = measure_decisions(setting, decoders)
    for (key, rate), decoder in decoders.items():
        rows = texts(f"{key}-{rate:g}", decoder, *reference)
        cost = setting.cost if METHODS[key].three else ends
        seconds = [share * table[1] for share, table in zip(spent[key], cost.tables, strict=False)]
        measured[f"{key}-{rate:g}"] = price_texts(rows, prompts, cost, seconds)
    chance = [measured[name] for name in (LARGE, "small", *(f"random-{rate:g}" for rate in config.rates))]
    rows = [{"key": "small", "label": "small model alone", "rate": 0.0} | summarize(measured, "small", chance)]
    for key, rate in decoders:
        about = {"key": key, "label": METHODS[key].label, "rate": rate, "decision_share": spent[key][0]}
        rows.append(about | summarize(measured, f"{key}-{rate:g}", chance))
    return rows


def measure_decisions(setting: Setting, decoders: dict[tuple[str, float], Backoff]) -> dict[str, list[float]]:
    """Cost of each method's decisions, as shares of a token of the model that they watch; kept once measured."""
    path = setting.folder / "decisions.json"
    known = documents.read(path, "delete it to measure the decisions again") if path.exists() else {}
    for (key, _), decoder in decoders.items():
        if key in known:
            continue
        watched = setting.models if METHODS[key].three else setting.models[:1]
        known[key] = [
            0.0 if isinstance(decoder, Oracle) else decision_share(lm, policy, setting.prompts[:4], setting.new)
            for lm, policy in zip(watched, decoder.policies, strict=False)
        ]
        documents.write(path, known)
    return known


def describe(config: BackoffTables, setting: Setting) -> dict:
    """The setting of the figures, and notes on their limits."""
    fits, (length, speed) = setting.fits[0], setting.draft
    above, published = (float((fits.fit["kl"] > cut).mean()) for cut in (fits.cut, KL_CUT))
    notes = [
        f"{len(setting.prompts)} unseen prompts; the published label is KL > {fits.cut:.3g} nats, true of "
        f"{above:.0%} of the fit split (KL > {KL_CUT}: {published:.0%}).",
        f"Exact speculative decoding at its best length, {length}: {speed:.2f}x at loss 0 (replayed, fit split).",
        "Oracles ask the large model about every token; their priced time leaves that out.",
    ]
    if len(setting.models) == 3:
        notes.append(
            "Three models: each hand-off is fitted and calibrated on its own traces against the large model, at the "
            "square root of the rate; in decoding, the second decides only where the first escalated."
        )
    return {
        "name": setting.folder.name,
        "models": [lm.name for lm in setting.models],
        "prompts": len(setting.prompts),
        "rates": list(config.rates),
        "kl": {"cut": fits.cut, "above": above, "above_published": published},
        "speculative": {"length": length, "speedup": speed},
        "tables": setting.cost.tables,
        "notes": notes,
    }


main = command(BackoffTables, run, __doc__, lambda config: config.output)

if __name__ == "__main__":
    raise SystemExit(main())
