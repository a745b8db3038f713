"""Costs of models on one machine: seconds of a forward by the tokens it reads, and of the work between forwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONTEXT = 128  # cached tokens at which forwards are timed
Table = dict[int, float]  # seconds of a forward by the tokens it reads


@dataclass(frozen=True)
class ModelCosts:
    """Seconds that models, cheapest first, take on one machine; what was not measured counts as nothing."""

    tables: tuple[Table, ...]  # one per model, at ``CONTEXT`` cached tokens
    cached: tuple[float, ...] = ()  # per model: what each further cached token adds to a forward
    token_overhead: float = 0.0  # outside of forwards, for each token that the last model writes alone
    round_overhead: float = 0.0  # outside of forwards, for each round of speculative decoding
    draft_overhead: float = 0.0  # outside of forwards, for each drafted token
    precision: float = 0.0  # relative half-width of the widest 90 % interval of a forward's median; 0 where not known

    @property
    def small(self) -> Table:
        return self.tables[0]

    @property
    def large(self) -> Table:
        return self.tables[-1]

    def forward(self, model: int, tokens: int, context: int = CONTEXT) -> float:
        """Seconds in which the model of this index reads ``tokens`` at once after ``context`` cached ones."""
        longer = (context - CONTEXT) * self.cached[model] if self.cached else 0.0
        return float(seconds(self.tables[model], tokens)) + longer


def seconds(table: Table, tokens) -> np.ndarray:
    """Seconds to read ``tokens`` [...] at once: interpolated in ``table``, linear beyond its end."""
    n, s = np.array(sorted(table.items()), dtype=float).T
    tokens = np.asarray(tokens, dtype=float)
    slope = (s[-1] - s[-2]) / (n[-1] - n[-2])
    return np.where(tokens > n[-1], s[-1] + (tokens - n[-1]) * slope, np.interp(tokens, n, s))


def text_seconds(table: Table, prompt: int | Sequence[int], tokens, beams: int = 1) -> np.ndarray:
    """Seconds [n] in which one model reads prompts of ``prompt`` [n] tokens and writes ``tokens`` [n] after each."""
    return seconds(table, prompt) + (np.asarray(tokens) - 1) * seconds(table, beams)
