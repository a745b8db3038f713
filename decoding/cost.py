"""What a forward costs on this machine: seconds by number of tokens read, measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch

from decoding.lm import LM

LENGTHS = (1, 2, 4, 8, 16, 64, 256)


def measure(models: Sequence[LM], lengths: Sequence[int] = LENGTHS, context: int = 128, repeats: int = 7) -> list[dict]:
    """Per model {tokens read: median seconds} of one forward for a row that already holds ``context`` tokens.

    The models take turns, so that a machine that slows down slows all of them.
    """
    room = min(lm.context for lm in models)
    context = min(context, room // 2)
    lengths = [n for n in lengths if context + n <= room]
    sessions = [lm.session(1, context + max(lengths)) for lm in models]
    ids = torch.randint(min(lm.vocab for lm in models), (1, context + max(lengths)), device=models[0].device)
    row = torch.zeros(1, dtype=torch.long, device=ids.device)
    at = lambda n: torch.tensor([n], device=ids.device)  # noqa: E731
    times = [{n: [] for n in lengths} for _ in models]
    for repeat in range(repeats + 1):
        for n in lengths if repeat < 4 else [n for n in lengths if n <= 16]:
            for session, seconds in zip(sessions, times, strict=True):
                session.read[:] = context
                _wait(ids.device)
                began = time.perf_counter()
                session.catch_up(ids, at(context + n), row)
                _wait(ids.device)
                if repeat:  # the first round warms up
                    seconds[n].append(time.perf_counter() - began)
    return [{n: statistics.median(values) for n, values in seconds.items()} for seconds in times]


def seconds(table: dict, tokens) -> np.ndarray:
    """Seconds to read ``tokens`` [...] tokens at once, interpolated in a measured table, linear beyond its end."""
    known = sorted((int(n), float(s)) for n, s in table.items())
    n, s = np.array(known).T
    tokens = np.asarray(tokens, dtype=float)
    slope = (s[-1] - s[-2]) / (n[-1] - n[-2])
    return np.where(tokens > n[-1], s[-1] + (tokens - n[-1]) * slope, np.interp(tokens, n, s))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
