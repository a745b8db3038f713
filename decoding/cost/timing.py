"""What a forward costs on this machine: seconds by number of tokens read, measured."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np
import torch

from decoding.models.lm import LM

LENGTHS = (1, 2, 4, 8, 16, 64, 256)
CONTEXT = 128
"""tokens in the cache of a forward that is timed"""
CALM = 0.15
"""part by which two measurements of one forward may differ; beyond it something else was running"""
TRIES = 6

Table = dict[int, float]
"""Tokens read to seconds."""


@dataclass(frozen=True)
class PairCosts:
    """What a draft and a target cost on one machine, in seconds."""

    forwards: tuple[Table, Table]
    """of each: a forward with ``CONTEXT`` tokens in its cache"""
    cached: tuple[float, float] = (0.0, 0.0)
    """of each: what every further token in its cache adds to that"""
    alone: float = 0.0
    """outside of forwards, for each token that the target writes alone"""
    round: float = 0.0
    """outside of forwards, for each round of speculative decoding"""
    drafted: float = 0.0
    """outside of forwards, for each token that is drafted"""

    def forward(self, model: int, tokens: int, context: int) -> float:
        """Of model 0, the draft, or 1: it reads ``tokens`` at once and has ``context`` in its cache."""
        return float(seconds(self.forwards[model], tokens)) + (context - CONTEXT) * self.cached[model]


def measure(
    models: Sequence[LM],
    lengths: Sequence[int] = LENGTHS,
    context: int = CONTEXT,
    say: Callable[[str], None] = logging.getLogger(__name__).warning,
) -> list[Table]:
    """Per model {tokens read: median seconds} of one forward for a row that already holds ``context`` tokens.

    Everything is measured until two measurements agree, in every forward, within ``CALM``: one busy second of the
    machine had made a large model four times slower, and everything that was chosen by the table wrong. After
    ``TRIES`` the least medians are taken, for a disturbance only makes slower, and ``say`` gets a sentence.
    """
    stopwatch, found = Stopwatch(models, lengths, context), []
    stopwatch.times(1)  # the first round warms up
    for _ in range(TRIES):
        found.append(stopwatch.times())
        closest = min(combinations(found, 2), key=lambda pair: _difference(*pair), default=None)
        if closest is not None and _difference(*closest) <= CALM:
            return _each(_together, *closest)
    say(
        f"the machine is noisy: of {TRIES} timings of the models the closest two differ by "
        f"{_difference(*closest):.0%}; the fastest are used"
    )
    return _each(_least, *found)


class Stopwatch:
    """Times forwards of several models, which take turns, so that a machine that slows down slows all of them."""

    def __init__(self, models: Sequence[LM], lengths: Sequence[int], context: int):
        room = min(lm.context for lm in models)
        self.context = min(context, room // 2)
        self.lengths = [n for n in lengths if self.context + n <= room]
        capacity, device = self.context + max(self.lengths), models[0].device
        self.sessions = [lm.session(1, capacity) for lm in models]
        self.ids = torch.randint(min(lm.vocab for lm in models), (1, capacity), device=device)

    def times(self, repeats: int = 4) -> list[dict[int, list[float]]]:
        """Per model {tokens read: seconds of each forward}; long ones are repeated half as often."""
        times = [{n: [] for n in self.lengths} for _ in self.sessions]
        for repeat in range(repeats):
            for n in self.lengths if repeat % 2 == 0 else [n for n in self.lengths if n <= 16]:
                for session, seconds in zip(self.sessions, times, strict=True):
                    seconds[n].append(self._time(session, n))
        return times

    def _time(self, session, n: int) -> float:
        device = self.ids.device
        row, end = torch.zeros(1, dtype=torch.long, device=device), torch.tensor([self.context + n], device=device)
        session.read[:] = self.context
        _wait(device)
        began = time.perf_counter()
        session.catch_up(self.ids, end, row)
        _wait(device)
        return time.perf_counter() - began


def _each(value: Callable[..., float], *measurements: list[dict]) -> list[dict]:
    """``value(times, times ...)`` of several measurements, for every model and number of tokens."""
    return [{n: value(*(one[n] for one in models)) for n in models[0]} for models in zip(*measurements, strict=True)]


def _difference(first: list[dict], second: list[dict]) -> float:
    """The greatest relative difference of the medians of two measurements."""
    apart = _each(_apart, first, second)
    return max(value for model in apart for value in model.values())


def _apart(*times: list[float]) -> float:
    medians = [*map(statistics.median, times)]
    return max(medians) / min(medians) - 1


def _together(*times: list[float]) -> float:
    return statistics.median(chain(*times))


def _least(*times: list[float]) -> float:
    return min(map(statistics.median, times))


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
