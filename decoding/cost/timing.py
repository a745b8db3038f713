"""Times forwards of models on this machine, by the number of tokens that they read."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from decoding.cost.costs import CONTEXT, ModelCosts
from decoding.models.lm import LM

LENGTHS = (1, 2, 3, 4, 5, 6, 8, 16, 64, 256)
"""Tokens read. The sizes of drafts one by one: kernels that multiply rows in blocks of 4 make 5 dearer than 4."""
EACH = (1, 2, 3, 5, 9)
"""Tokens of each row that are also timed in a batch: one, those of drafts, and those since the last call."""
FEW, SPAN, POINT = 5, 2.0, 2.0
"""A forward is timed at least ``FEW`` times, over at least ``SPAN`` seconds, unless that takes over ``POINT`` seconds:
one of several seconds, such as a large model's of 256 tokens, is timed once."""
PRECISE = 0.03
"""Relative half-width of a median's interval with which a timing is precise enough."""
CALM = 0.15
"""The greatest one on a machine that does nothing else."""
Z = 1.645
"""Intervals are of 90 %."""


class Timing(list[float]):
    """Seconds of one forward, as often as it was timed."""

    @property
    def interval(self) -> tuple[float, float]:
        """Of the median, by order statistics: no assumption on how the seconds are distributed."""
        ordered, n = sorted(self), len(self)
        left_out = max(0, math.floor((n - Z * math.sqrt(n)) / 2))
        return ordered[left_out], ordered[n - 1 - left_out]

    @property
    def precision(self) -> float:
        """Relative half-width of the interval; 0 where the forward takes too long to be timed often."""
        low, high = self.interval
        return 0.0 if len(self) < FEW else (high - low) / 2 / self.at(0.5)

    @property
    def spent(self) -> float:
        """Seconds that all of them would have taken without what disturbed some."""
        return len(self) * self.at(0.5) if self else 0.0

    @property
    def done(self) -> bool:
        return self.spent >= POINT or (len(self) >= FEW and self.precision <= PRECISE)

    def at(self, share: float) -> float:
        """The quantile of this ``share``."""
        return float(np.quantile(self, share))


def measure(
    models: Sequence[LM],
    lengths: Sequence[int] = LENGTHS,
    context: int = CONTEXT,
    say: Callable[[str], None] = logging.getLogger(__name__).warning,
    batch: int = 1,
) -> ModelCosts:
    """Median seconds of forwards that read each of ``lengths`` tokens at once, after ``context`` cached ones.

    In a ``batch`` they are those of up to so many rows, as many in each, and what a few tokens of every row take is
    timed too.

    Forwards take turns, and each is timed until the interval of its median is ``PRECISE``: a machine that was busy for
    one second has made a large model look four times slower, and spoilt every choice that rested on the table. Where
    it never calms down, the lower quartiles are taken, since a disturbance only slows down, and ``say`` is told in one
    sentence. Lengths that do not fit the models are left out.
    """
    stopwatch = Stopwatch(models, lengths, context, batch)
    timings = stopwatch.run()
    precision = max(timing.precision for timing in timings.values())
    if precision > CALM:
        say(
            f"the machine is noisy: some medians are known within {precision:.0%} only, so lower quartiles are "
            "taken; let nothing else run, and measure again"
        )
    share = 0.25 if precision > CALM else 0.5
    tables = tuple({n: timings[model, n].at(share) for n in stopwatch.lengths} for model in range(len(models)))
    return ModelCosts(tables, precision=precision, batch=batch)


class Stopwatch:
    """Times forwards of several models in turn, so that a machine that slows down slows all of them."""

    def __init__(self, models: Sequence[LM], lengths: Sequence[int], context: int, batch: int = 1):
        room = min(lm.context for lm in models)
        self.context, self.batch = min(context, room // 2), batch
        lengths = sorted({*lengths, *(n * batch for n in EACH if batch > 1)})
        self.lengths = [n for n in lengths if self.context + n // self._rows(n) <= room]
        capacity, device = self.context + max(n // self._rows(n) for n in self.lengths), models[0].device
        self.sessions = [lm.session(batch, capacity) for lm in models]
        self.ids = torch.randint(min(lm.vocab for lm in models), (batch, capacity), device=device)

    def _rows(self, n: int) -> int:
        """The most rows of the batch that can read as many tokens each, ``n`` in all."""
        return max(rows for rows in range(1, self.batch + 1) if n % rows == 0)

    def run(self) -> dict[tuple[int, int], Timing]:
        """The timings of each model and length, rounds of all that need more of them; the first of each warms up."""
        points = [(model, n) for n in self.lengths for model in range(len(self.sessions))]
        for session in self.sessions:  # the first forward of a process may compile for seconds
            for n in self.lengths[:1] if session.recorder is None else self.lengths:  # and each size is recorded
                self._time(session, n)
        warm = {(model, n): self._time(self.sessions[model], n) for model, n in points}
        # What takes seconds anyway gains nothing from a second time.
        timings = {point: Timing([seconds] if seconds >= POINT else []) for point, seconds in warm.items()}
        began = time.perf_counter()
        while left := self._left(timings, time.perf_counter() - began):
            for model, n in left:
                timings[model, n].append(self._time(self.sessions[model], n))
        return timings

    def _left(self, timings: dict[tuple[int, int], Timing], seconds: float) -> list[tuple[int, int]]:
        """The points to time in the next round: those not done, and all that are quick until ``SPAN`` is over."""
        return [p for p, timing in timings.items() if not timing.done or (seconds < SPAN and timing.spent < POINT)]

    def _time(self, session, n: int) -> float:
        device = self.ids.device
        rows = torch.arange(self._rows(n), device=device)
        end = torch.full_like(rows, self.context + n // len(rows))
        session.read[:] = self.context
        _wait(device)
        began = time.perf_counter()
        session.catch_up(self.ids, end, rows)
        _wait(device)
        return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
