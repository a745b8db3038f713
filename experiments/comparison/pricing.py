"""Time without a clock: what a text should have cost by the calls it took, at a measured timing table.

For methods on more prompts than one can time. What every method does beside its forwards is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from decoding.cost.timing import seconds
from experiments.comparison.methods import Method
from train.data.prompts import Prompt
from train.replay.backoff import TimingTables
from train.replay.pricing import priced as handoff


def priced(method: Method, decoder, prompts: Sequence[Prompt], rows: Sequence[dict], cost: TimingTables) -> np.ndarray:
    """Seconds [prompts] of the texts ``rows`` (see ``texts.write_texts``) as single runs."""
    inner = getattr(decoder, "decoder", decoder)
    return np.array(
        [_one(method, inner, len(p.ids), row, cost) for p, row in zip(prompts, rows, strict=True)], dtype=float
    )


def _one(method: Method, decoder, prompt: int, row: dict, cost: TimingTables) -> float:
    if method.kind.role == "handoff":
        return handoff(prompt, row["writers"], [cost.small, cost.large])
    if method.kind.role == "draft":
        return _drafted(decoder, prompt, row, cost)
    table = cost.small if method.kind.role == "small" else cost.large
    later = seconds(table, method.options.get("width", 1))
    return float(seconds(table, prompt) + (len(row["answer"]) - 1) * later)


def _drafted(decoder, prompt: int, row: dict, cost: TimingTables) -> float:
    """A text that was drafted and checked, all its rounds of the mean size."""
    rounds = row["target_calls"]
    wide = row["verified"] / rounds
    # A tree has as many nodes on a level as were verified for each token of its depth.
    level = getattr(decoder, "beams", max(1.0, row["verified"] / max(1.0, row["drafted"])))
    target = seconds(cost.large, prompt + wide) + (rounds - 1) * seconds(cost.large, 1 + wide)
    return float(target + _draft(decoder, prompt, rounds, row["drafted"], level, cost))


def _draft(decoder, prompt: int, rounds: int, drafted: float, level: float, cost: TimingTables) -> float:
    """Seconds of the draft: one forward a token, its first of a round of one text, later ones of ``level`` beams."""
    if len(decoder.models) == 1:
        return 0.0
    # A policy that stops a draft has looked at a token that is not in it.
    asked = drafted + rounds * (getattr(decoder, "stop", None) is not None and not decoder.keep)
    one, all_beams = (seconds(cost.small, n) for n in (1, level))
    first = min(rounds, asked)
    return float(seconds(cost.small, prompt) - one + first * one + (asked - first) * all_beams)
