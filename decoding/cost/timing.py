"""Times forwards of models on this machine, by the number of tokens that they read."""

from __future__ import annotations

import logging
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain, combinations

import torch

from decoding.cost.costs import CONTEXT, ModelCosts
from decoding.models.lm import LM

LENGTHS = (1, 2, 4, 8, 16, 64, 256)
CALM = 0.15  # largest relative difference between two measurements of one forward on a machine that does nothing else
TRIES = 6
Times = dict[tuple[int, int], list[float]]  # seconds of forwards by model and tokens read


def measure(
    models: Sequence[LM],
    lengths: Sequence[int] = LENGTHS,
    context: int = CONTEXT,
    say: Callable[[str], None] = logging.getLogger(__name__).warning,
) -> ModelCosts:
    """Median seconds of forwards of one row that read each of ``lengths`` tokens after ``context`` cached ones.

    Measurements are repeated until two agree within ``CALM`` in every forward: a machine that was busy for one second
    has made a large model look four times slower, and spoilt every choice that rested on the table. After ``TRIES``
    the least medians are taken, since a disturbance only slows down, and ``say`` is told in one sentence. Lengths that
    do not fit the models are left out.
    """
    stopwatch, found = Stopwatch(models, lengths, context), []
    stopwatch.times(1)  # the first round warms up
    for _ in range(TRIES):
        found.append(stopwatch.times())
        closest = min(combinations(found, 2), key=lambda pair: _difference(*pair), default=None)
        if closest is not None and _difference(*closest) <= CALM:
            return _costs(lambda *times: statistics.median(chain(*times)), *closest)
    say(
        f"the machine is noisy: of {TRIES} timings of the models the closest two differ by "
        f"{_difference(*closest):.0%}; the fastest are used"
    )
    return _costs(lambda *times: min(map(statistics.median, times)), *found)


class Stopwatch:
    """Times forwards of several models in turn, so that a machine that slows down slows all of them."""

    def __init__(self, models: Sequence[LM], lengths: Sequence[int], context: int):
        room = min(lm.context for lm in models)
        self.context = min(context, room // 2)
        self.lengths = [n for n in lengths if self.context + n <= room]
        capacity, device = self.context + max(self.lengths), models[0].device
        self.sessions = [lm.session(1, capacity) for lm in models]
        self.ids = torch.randint(min(lm.vocab for lm in models), (1, capacity), device=device)

    def times(self, repeats: int = 4) -> Times:
        """The times of ``repeats`` forwards of each length; long ones are repeated half as often."""
        times = defaultdict(list)
        for repeat in range(repeats):
            for n in self.lengths if repeat % 2 == 0 else [n for n in self.lengths if n <= 16]:
                for model, session in enumerate(self.sessions):
                    times[model, n].append(self._time(session, n))
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


def _costs(value: Callable[..., float], *measurements: Times) -> ModelCosts:
    """``value(times, times ...)`` of several measurements of each forward."""
    tables = defaultdict(dict)
    for model, n in measurements[0]:
        tables[model][n] = value(*(times[model, n] for times in measurements))
    return ModelCosts(tuple(tables.values()))


def _difference(first: Times, second: Times) -> float:
    """The greatest relative difference of the medians of two measurements."""
    pairs = ((statistics.median(first[key]), statistics.median(second[key])) for key in first)
    return max(max(pair) / min(pair) - 1 for pair in pairs)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
