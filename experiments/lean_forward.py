"""Speed of the fused forward against the model's own forward, on the same weights, each in a model of its own.

python experiments/lean_forward.py
python experiments/lean_forward.py --models qwen2.5-coder-0.5b-instruct-q4_k_m.gguf --dtype int4
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

import statistics
import time
from dataclasses import dataclass

import torch

from decoding import LM, default_pair
from train.common.cli import command


@dataclass
class FusedForward:
    """Both forwards of each model, in turn: median milliseconds, largest difference of logits."""

    models: tuple[str, ...] | None = None
    """folders, hub ids or .gguf files (default: the default pair)"""
    dtype: str = "float32"
    """float32, bfloat16, int4, int8 or auto, of ``models``"""
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
    load = {"small": lambda: default_pair()[0], "large": lambda: default_pair()[1]}
    if config.models is not None:
        load = {name: lambda name=name: LM.load(name, dtype=config.dtype) for name in config.models}
    for name, new in load.items():
        # The parts of one product share it once it is made, which the model's own forward would pay for.
        fused, own = new(), new()
        if fused.fused_forward() is None:
            raise ValueError(f"{name} has no fused forward: {fused.model.config.model_type} fits no row of its table")
        for query in config.queries:
            for _ in range(config.rounds):
                (quick, first), (slow, second) = measure(fused, True, query, config), measure(own, False, query, config)
                apart = float((first - second).abs().max())
                print(
                    f"{name}, {query} tokens: fused {quick:.2f} ms, own {slow:.2f} ms, {slow / quick:.2f}x, "
                    f"logits differ by at most {apart:.1e}"
                )


@torch.inference_mode()
def measure(lm, fuse: bool, query: int, config: FusedForward) -> tuple[float, torch.Tensor]:
    """(median milliseconds to read ``query`` tokens after the context, logits [query, vocab])."""
    if not fuse:
        lm.fused_forward = lambda: None
    session = lm.session(1, config.context + query)
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
