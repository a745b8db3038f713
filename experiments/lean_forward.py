"""Speed of the fused forward of Llamas against the model's own forward, on the same packed weights.

python experiments/lean_forward.py
"""

import statistics
import time
from dataclasses import dataclass

import torch

from decoding import default_pair
from train.common.cli import command


@dataclass
class FusedForward:
    """Both forwards of the default pair's models, in turn: median milliseconds, largest difference of logits."""

    queries: tuple[int, ...] = (1, 3, 5)
    """tokens read at once"""
    context: int = 100
    """tokens cached before"""
    repeats: int = 60
    """forwards of which the median is taken"""
    rounds: int = 3
    """medians printed of each"""


def run(config: FusedForward) -> None:
    """Print a line for each model, number of tokens and round."""
    for lm, name in zip(default_pair(), ("small", "large"), strict=True):
        for query in config.queries:
            for _ in range(config.rounds):
                (fused, first), (own, second) = (measure(lm, fuse, query, config) for fuse in (True, False))
                apart = float((first - second).abs().max())
                print(
                    f"{name}, {query} tokens: fused {fused:.2f} ms, own {own:.2f} ms, {own / fused:.2f}x, "
                    f"logits differ by at most {apart:.1e}"
                )


@torch.inference_mode()
def measure(lm, fuse: bool, query: int, config: FusedForward) -> tuple[float, torch.Tensor]:
    """(median milliseconds to read ``query`` tokens after the context, logits [query, vocab])."""
    session = lm.session(1, config.context + query)
    session.fused = session.fused if fuse else None
    shape = (1, config.context + query)
    ids = torch.randint(lm.vocab, shape, generator=torch.Generator().manual_seed(0))
    row, times = torch.zeros(1, dtype=torch.long), []
    session.catch_up(ids, torch.tensor([config.context]), row)
    for _ in range(config.repeats):
        session.read[:] = config.context
        began = time.perf_counter()
        logits = session.catch_up(ids, torch.tensor([shape[1]]), row, logits_to_keep=query)
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times), logits.float()


main = command(FusedForward, run, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
