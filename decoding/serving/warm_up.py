"""A first text, before anybody asks for one: it compiles what is compiled, and shows that the models can write."""

from __future__ import annotations

import queue

from decoding.serving.app import Served
from decoding.serving.jobs import Job, Mode, Part

TOKENS = 4


def warm_up(served: Served) -> None:
    """Write a few tokens, also by the large model alone. ValueError where that fails, with the reason."""
    writers = served.writers
    # With its threshold named, a mode is not the one whose texts are logged.
    for mode in (Mode(writers.default, threshold=writers.threshold), Mode(writers.default, alone=True)):
        parts: queue.Queue[Part] = queue.Queue()
        most = min(TOKENS, served.batcher.length - 1)
        served.batcher.submit(Job([0], most, mode, 0, (), parts.put, served.large.tokenizer))
        while (part := parts.get()).finish is None:
            if part.error is not None:
                raise ValueError(part.error)
