"""Measures everything a pair costs: forwards, what a longer cache adds to them, and the work between them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from decoding.cost.costs import CONTEXT, ModelCosts
from decoding.cost.timing import measure
from decoding.decoders.autoregressive import Autoregressive
from decoding.decoders.speculative import Speculative
from decoding.generation import generate
from decoding.models.lm import LM

DEEP = 1024  # cached tokens of the forwards that tell what a longer cache adds
NEW = 33


def measure_costs(models: Sequence[LM]) -> ModelCosts:
    """Costs of [draft, target]; nothing else should run meanwhile."""
    costs, cached = measure(models), (0.0, 0.0)
    further = min(DEEP, min(lm.context for lm in models) // 2) - CONTEXT
    if further > 0:
        deep = measure(models, (1,), CONTEXT + further)
        tables = zip(costs.tables, deep.tables, strict=True)
        cached = tuple(max(0.0, (after[1] - before[1]) / further) for before, after in tables)
    token, per_round, drafted = overheads(models)
    return replace(costs, cached=cached, token_overhead=token, round_overhead=per_round, draft_overhead=drafted)


def overheads(models: Sequence[LM], repeats: int = 5) -> tuple[float, float, float]:
    """Seconds outside of forwards: for a token that the target writes alone, a round, and each token drafted in it.

    0 on an accelerator: it works while the host does, so the host's clock cannot tell the two apart.
    """
    if models[0].device.type != "cpu":
        return 0.0, 0.0, 0.0
    decoders = Autoregressive(models[1]), Speculative(models, 1), Speculative(models, 5)
    spent = [[_outside(decoder) for decoder in decoders] for _ in range(1 + repeats)][1:]  # the first warms up
    token = statistics.median(seconds / calls for (seconds, calls, _), *_ in spent)
    # Two draft lengths give two equations for two unknowns: a round and a drafted token.
    solved = [np.linalg.lstsq([row[1:] for row in rows], [row[0] for row in rows], rcond=None)[0] for _, *rows in spent]
    per_round, drafted = np.maximum(np.median(solved, axis=0), 0.0)
    return token, float(per_round), float(drafted)


def _outside(decoder) -> tuple[float, int, int]:
    """(seconds outside of forwards, calls of the target, calls of the draft) while a short text is written."""
    ids = torch.randint(min(lm.vocab for lm in decoder.models), (1, 8), generator=torch.Generator().manual_seed(0))
    result = generate(decoder, ids, max_new_tokens=NEW, eos_token_id=(), seed=0)
    calls = result.counts["calls"]
    return result.seconds["total"] - sum(result.seconds["models"]), calls[-1], calls[0]
