"""What a decision costs: features, score and threshold, as a share of one token of the model that it watches.

    python experiments/decision.py                 # of the default pair's drafter, and of its large model in that place

Policies of every kind, with weights fitted on noise, decide about every token that a model writes alone, and what that
takes is added up beside the forwards. `steps` is the same without the compiled call (``fast_path``): as on other
devices, and before there was one. Run it on a quiet machine.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from decoding import LM, Backoff, generate
from policies import FEATURES, MLP, Logistic, Policy, Rule, token_classes
from train.common.cli import at_least, attempt, checking
from train.data.prompts import Prompt, load_prompts

CONFIDENCES = ("entropy", "varentropy", "top1", "margin", "top10", "top10_mass")
ALL = tuple(name for name, feature in FEATURES.items() if not feature.needs_target and name != "uniform")


@dataclass
class DecisionCost:
    """Seconds of a decision over seconds of a token, by policy."""

    limit: int = 6
    """prompts"""
    max_new_tokens: int = 48
    repeats: int = 2
    """readings of each"""
    threads: int | None = None


class Timed(Backoff):
    """Backoff that adds up the ``spent`` seconds of its decisions (host clock: meaningful on CPU)."""

    spent, steps = 0.0, False

    def _hand_on(self, run, i, trail, *args) -> Tensor:
        trail.compiled = None if self.steps else trail.compiled
        began = time.perf_counter()
        handed = super()._hand_on(run, i, trail, *args)
        self.spent += time.perf_counter() - began
        return handed


def decision_share(model: LM, policy: Policy, prompts: Sequence[Prompt], new: int, steps: bool = False) -> float:
    """Seconds of one decision over those of one token of ``model``, which writes ``new`` to each prompt, one by one.

    Both are timed in turn, token by token, so a machine that slows down slows both. With ``steps`` nothing compiled
    decides.
    """
    quiet = policy.with_threshold(math.inf)  # it decides as before, and never escalates
    spent = tokens = 0.0
    for i, prompt in enumerate(prompts[:1] + prompts):
        decoder = Timed([model, model], quiet, verify_eos=False)
        decoder.steps = steps
        ids = torch.tensor([prompt.ids], device=model.device)
        result = generate(decoder, ids, max_new_tokens=new, eos_token_id=())
        if i:  # the first is a warm-up
            spent += decoder.spent / new
            tokens += (result.seconds["models"][0] - result.seconds["prefill"]) / (new - 1)
    return spent / tokens


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


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when it is done, 2 after one sentence about what was wrong with the input."""
    config = tyro.cli(DecisionCost, args=argv, description=__doc__)
    return attempt("decision", lambda: run(config))


def run(config: DecisionCost) -> dict[tuple[str, str, bool], list[float]]:
    """Shares by policy, model and whether steps were built. Raises InputError before any work is done."""
    from decoding import default_pair
    from decoding.cli.options import use

    with checking():
        at_least(config, {"limit": 1, "max_new_tokens": 2, "repeats": 1})
        use("cpu", config.threads)
    pair = default_pair()
    prompts = [p for p in load_prompts(None, pair[1].tokenizer, 100) if len(p.ids) <= 128][: config.limit]
    found, console = {}, Console()
    table = Table("policy", "watches", "a decision, in its tokens", "by steps")
    for label, policy in specimens(pair[1].tokenizer).items():
        for lm in pair:
            both = [
                [decision_share(lm, policy, prompts, config.max_new_tokens, steps) for _ in range(config.repeats)]
                for steps in (False, True)
            ]
            found |= {(label, lm.name, steps): shares for steps, shares in zip((False, True), both, strict=True)}
            table.add_row(label, lm.name, *("; ".join(f"{share:.3f}" for share in shares) for shares in both))
    console.print(table)
    return found


if __name__ == "__main__":
    sys.exit(main())
