"""Costs of models on one machine: seconds of a forward by the tokens it reads, and of the work between forwards."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

CONTEXT = 128  # cached tokens at which forwards are timed
Table = dict[int, float]  # seconds of a forward by the tokens it reads, over all its rows


@dataclass(frozen=True)
class ModelCosts:
    """Seconds that models, cheapest first, take on one machine; what was not measured counts as nothing.

    Models are -1 for the last one, and so on. With a ``batch`` of several rows, whose texts are written at once, the
    seconds of one text are its share of forwards that read all of them.
    """

    tables: tuple[Table, ...]  # one per model, at ``CONTEXT`` cached tokens
    cached: tuple[float, ...] = ()  # per model: what each further cached token adds to a forward
    token_overhead: float = 0.0  # outside of forwards, for each token that the last model writes alone
    round_overhead: float = 0.0  # outside of forwards, for each round of speculative decoding
    draft_overhead: float = 0.0  # outside of forwards, for each drafted token
    precision: float = 0.0  # relative half-width of the widest 90 % interval of a forward's median; 0 where not known
    batch: int = 1  # rows that are written at once, and among which forwards were timed

    @property
    def small(self) -> Table:
        return self.tables[0]

    @property
    def large(self) -> Table:
        return self.tables[-1]

    def forward(self, model: int, tokens: int, context: int = CONTEXT) -> float:
        """Seconds in which a model reads ``tokens`` at once after ``context`` cached ones."""
        longer = (context - CONTEXT) * self.cached[model] if self.cached else 0.0
        return float(seconds(self.tables[model], tokens)) + longer

    def share(self, model: int, tokens, rows: int | None = None) -> np.ndarray:
        """A text's share of the seconds in which a model reads ``tokens`` [...] of each of ``rows`` (default: all)."""
        rows = self.batch if rows is None else rows
        return seconds(self.tables[model], np.asarray(tokens) * rows) / rows

    def joined(self, model: int, tokens, rate: float) -> np.ndarray:
        """The mean ``share`` of a call that reads ``tokens`` [...] and that each other row joins at this ``rate``."""
        others = self.batch - 1
        chances = [math.comb(others, k) * rate**k * (1 - rate) ** (others - k) for k in range(self.batch)]
        return sum(chance * self.share(model, tokens, 1 + k) for k, chance in enumerate(chances) if chance > 0)

    def text(self, model: int, prompt, tokens, beams: int = 1) -> np.ndarray:
        """Seconds [n] in which a model reads prompts of ``prompt`` [n] tokens and writes ``tokens`` [n] after each."""
        return self.share(model, prompt) + (np.asarray(tokens) - 1) * self.share(model, beams)


def seconds(table: Table, tokens) -> np.ndarray:
    """Seconds to read ``tokens`` [...] at once: interpolated in ``table``, linear beyond its end."""
    n, s = np.array(sorted(table.items()), dtype=float).T
    tokens = np.asarray(tokens, dtype=float)
    slope = (s[-1] - s[-2]) / (n[-1] - n[-2])
    return np.where(tokens > n[-1], s[-1] + (tokens - n[-1]) * slope, np.interp(tokens, n, s))
