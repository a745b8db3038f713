"""Is the lean forward of Llamas faster than the model's own, on the same packed weights?

python experiments/lean_forward.py
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
import tyro


@dataclass
class LeanForward:
    """Both forwards of both models of the default pair in turn: medians in milliseconds, and the largest difference."""

    queries: tuple[int, ...] = (1, 3, 5)
    """tokens read at once"""
    context: int = 100
    repeats: int = 60
    rounds: int = 3


def main(config: LeanForward) -> None:
    from decoding import default_pair

    for lm, name in zip(default_pair(), ("small", "large"), strict=True):
        for query in config.queries:
            for _ in range(config.rounds):
                (lean, first), (own, second) = (measure(lm, way, query, config) for way in (True, False))
                apart = float((first - second).abs().max())
                print(f"{name}, {query} tokens: {lean:.2f} ms, own {own:.2f} ms, {own / lean:.2f}x, apart {apart:.1e}")


@torch.inference_mode()
def measure(lm, lean: bool, query: int, config: LeanForward) -> tuple[float, torch.Tensor]:
    """(median milliseconds of reading ``query`` tokens after the context, the logits)."""
    session = lm.session(1, config.context + query)
    session.lean = session.lean if lean else None
    shape = (1, config.context + query)
    ids = torch.randint(lm.vocab, shape, generator=torch.Generator().manual_seed(0))
    row, times = torch.zeros(1, dtype=torch.long), []
    session.catch_up(ids, torch.tensor([config.context]), row)
    for _ in range(config.repeats):
        session.read[:] = config.context
        began = time.perf_counter()
        logits = session.catch_up(ids, torch.tensor([shape[1]]), row, keep=query)
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times), logits.float()


if __name__ == "__main__":
    main(tyro.cli(LeanForward, description=__doc__))
