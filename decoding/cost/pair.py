"""All that a pair costs on this machine: forwards, what a long cache adds to them, and what is done between them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
import torch

from decoding.cost.timing import CONTEXT, PairCosts, measure
from decoding.decoders.autoregressive import Autoregressive
from decoding.decoders.speculative import Speculative
from decoding.generation import generate
from decoding.models.lm import LM

DEEP = 1024
"""tokens in the cache of the forwards that tell what more of them cost"""
NEW = 33


def measure_costs(models: Sequence[LM]) -> PairCosts:
    """Of [draft, target], before they write anything; nothing else should run meanwhile."""
    forwards, longer = measure(models), [0.0, 0.0]
    further = min(DEEP, min(lm.context for lm in models) // 2) - CONTEXT
    if further > 0:
        deep = measure(models, (1,), CONTEXT + further)
        longer = [max(0.0, (after[1] - before[1]) / further) for before, after in zip(forwards, deep, strict=True)]
    return PairCosts(tuple(forwards), tuple(longer), *outside(models))


def outside(models: Sequence[LM], repeats: int = 5) -> tuple[float, float, float]:
    """Seconds outside of forwards for a token that the target writes alone, a round, and each token drafted in it.

    0 on an accelerator, which works meanwhile: there the clock of the host tells neither from the other.
    """
    if models[0].device.type != "cpu":
        return 0.0, 0.0, 0.0
    ways = Autoregressive(models[1]), Speculative(models, 1), Speculative(models, 5)
    spent = [[_outside(way) for way in ways] for _ in range(1 + repeats)][1:]  # the first warms up
    alone = statistics.median(seconds / calls for (seconds, calls, _), *_ in spent)
    # Rounds and drafted tokens are two unknowns, of which two draft lengths tell.
    solved = [np.linalg.lstsq([row[1:] for row in rows], [row[0] for row in rows], rcond=None)[0] for _, *rows in spent]
    a_round, drafted = np.maximum(np.median(solved, axis=0), 0.0)
    return alone, float(a_round), float(drafted)


def _outside(decoder) -> tuple[float, int, int]:
    """Seconds outside of forwards in a short text, the target's forwards, and the draft's."""
    ids = torch.randint(min(lm.vocab for lm in decoder.models), (1, 8), generator=torch.Generator().manual_seed(0))
    result = generate(decoder, ids, max_new_tokens=NEW, eos_token_id=(), seed=0)
    calls = result.counts["calls"]
    return result.seconds["total"] - sum(result.seconds["models"]), calls[-1], calls[0]
