"""Cost of a decision: features, score and threshold, as a share of one token of the model that the policy watches.

    python experiments/decision.py                 # of the default pair's drafter, and of its large model in that place

Policies of every kind, with weights fitted on noise, decide about every token that a model writes alone, and the time
of their decisions is added up beside that of the forwards. The last column is without the compiled call, as on devices
that lack it. Run it on a quiet machine.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from decoding import default_pair
from decoding.cli.options import use
from experiments.shared.decision_cost import decision_share
from policies import FEATURES, MLP, Logistic, Policy, Rule, token_classes
from train.common import atomic
from train.common.cli import at_least, checking, command
from train.data.prompts import load_prompts
from train.reports.terminal import print_rows

CONFIDENCES = ("entropy", "varentropy", "top1", "margin", "top10", "top10_mass")
SHARES = ("shares", "uncompiled")
ALL = tuple(name for name, feature in FEATURES.items() if not feature.needs_target and name != "uniform")


@dataclass
class DecisionCost:
    """Seconds of a decision over seconds of a token, by kind of policy."""

    limit: int = 6
    """prompts"""
    max_new_tokens: int = 48
    repeats: int = 2
    """measurements of each"""
    threads: int | None = None
    output: Path | None = None
    """write the figures to this JSON file"""


def specimens(tokenizer) -> dict[str, Policy]:
    """One policy of each kind, by what it reads."""
    classes, rng = token_classes(tokenizer), np.random.default_rng(0)

    def fitted(kind, names: Sequence[str]) -> Policy:
        return kind(names, classes=classes).fit(rng.normal(size=(200, len(names))), rng.random(200))

    return {
        "rule, entropy": Rule("entropy", 2.0),
        f"logistic, {len(CONFIDENCES)} confidences": fitted(Logistic, CONFIDENCES),
        f"logistic, all {len(ALL)} features": fitted(Logistic, ALL),
        f"MLP, all {len(ALL)} features": fitted(MLP, ALL),
    }


def run(config: DecisionCost) -> dict:
    """Measure, print and write the figures. Raises InputError before any work is done."""
    with checking():
        at_least(config, {"limit": 1, "max_new_tokens": 2, "repeats": 1})
        use("cpu", config.threads)
    pair, rows = default_pair(), []
    prompts = [p for p in load_prompts(None, pair[1].tokenizer, 100) if len(p.ids) <= 128][: config.limit]
    for label, policy in specimens(pair[1].tokenizer).items():
        for lm in pair:
            row = {"policy": label, "watches": lm.name}
            for key, uncompiled in zip(SHARES, (False, True), strict=True):
                how = prompts, config.max_new_tokens, uncompiled
                row[key] = [decision_share(lm, policy, *how) for _ in range(config.repeats)]
            rows.append(row)
    show(rows)
    if config.output is not None:
        atomic.write_json(config.output, {"rows": rows})
    return {"rows": rows}


def show(rows: list[dict]) -> None:
    """Print a line for each policy and model."""
    lines = [
        (row["policy"], row["watches"], *("; ".join(f"{share:.3f}" for share in row[key]) for key in SHARES))
        for row in rows
    ]
    print_rows(("policy", "watches", "a decision, in its tokens", "not compiled"), lines)


main = command(DecisionCost, run, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
