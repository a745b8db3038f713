"""Measures everything a pair costs: forwards, what a longer cache adds to them, and the work between them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from decoding.cost.costs import CONTEXT, ModelCosts
from decoding.cost.timing import FEW, PRECISE, Timing, measure
from decoding.decoders.autoregressive import Autoregressive
from decoding.decoders.speculative import Speculative
from decoding.generation import generate
from decoding.models.lm import LM

DEEP = 1024  # cached tokens of the forwards that tell what a longer cache adds
MOST, LEAST = 33, 5
"""Tokens of a text that is timed: as many as a large model leaves time for."""
TEXT, ALL = 1.0, 12.0
"""Seconds that such a text should take at most, and after which no further one begins."""


def measure_costs(models: Sequence[LM]) -> ModelCosts:
    """Costs of [draft, target]; nothing else should run meanwhile."""
    costs, cached = measure(models), (0.0, 0.0)
    further = min(DEEP, min(lm.context for lm in models) // 2) - CONTEXT
    if further > 0:
        deep = measure(models, (1,), CONTEXT + further)
        tables = zip(costs.tables, deep.tables, strict=True)
        cached = tuple(max(0.0, (after[1] - before[1]) / further) for before, after in tables)
    token, per_round, drafted = overheads(models, costs.large[1])
    return replace(costs, cached=cached, token_overhead=token, round_overhead=per_round, draft_overhead=drafted)


def overheads(models: Sequence[LM], forward: float) -> tuple[float, float, float]:
    """Seconds outside of forwards: for a token that the target writes alone, a round, and each token drafted in it.

    forward: seconds of a token of the target, which says how precise they need to be. 0 on an accelerator: it works
    while the host does, so the host's clock cannot tell the two apart.
    """
    if models[0].device.type != "cpu":
        return 0.0, 0.0, 0.0
    decoders = Autoregressive(models[1]), Speculative(models, 1), Speculative(models, 5)
    new, began = min(MOST, max(LEAST, int(TEXT / forward))), time.perf_counter()
    for decoder in decoders if LEAST * forward < TEXT else ():  # warms up, which a slow forward hides
        _outside(decoder, LEAST)
    spent, tokens = [], Timing()
    while not _precise(tokens, forward) and (not spent or time.perf_counter() - began < ALL):
        spent.append([_outside(decoder, new) for decoder in decoders])
        seconds, calls, _ = spent[-1][0]
        tokens.append(seconds / calls)
    # Two draft lengths give two equations for two unknowns: a round and a drafted token.
    solved = [np.linalg.lstsq([row[1:] for row in rows], [row[0] for row in rows], rcond=None)[0] for _, *rows in spent]
    per_round, drafted = np.maximum(np.median(solved, axis=0), 0.0)
    return tokens.at(0.5), float(per_round), float(drafted)


def _precise(tokens: Timing, forward: float) -> bool:
    """Whether what a token costs beside its forward is known within ``PRECISE`` of that forward."""
    return len(tokens) >= FEW and tokens.precision * tokens.at(0.5) <= PRECISE * forward


def _outside(decoder, new: int) -> tuple[float, int, int]:
    """(seconds outside of forwards, calls of the target, calls of the draft) while a short text is written."""
    ids = torch.randint(min(lm.vocab for lm in decoder.models), (1, 8), generator=torch.Generator().manual_seed(0))
    result = generate(decoder, ids, max_new_tokens=new, eos_token_id=(), seed=0)
    calls = result.counts["calls"]
    return result.seconds["total"] - sum(result.seconds["models"]), calls[-1], calls[0]
