"""The text being written: ids, who wrote them, and where each row ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from decoding.sampling import noise


@dataclass(slots=True)
class Commit:
    """Tokens a decoder has decided on, for the rows ``rows`` of the batch.

    ``tokens`` [rows, k] and ``writers`` [rows, k]; only the first ``counts`` [rows] of each row are meant.
    """

    rows: Tensor
    tokens: Tensor
    writers: Tensor
    counts: Tensor

    @classmethod
    def one(cls, rows: Tensor, tokens: Tensor, writers: Tensor) -> Commit:
        """One token [rows] for each row."""
        return cls(rows, tokens[:, None], writers[:, None], torch.ones_like(rows))

    @classmethod
    def checked(cls, rows: Tensor, tokens: Tensor, accepted: Tensor, after: Tensor) -> Commit:
        """The first ``accepted`` [rows] of drafted ``tokens`` [rows, k] by writer 0, and ``after`` [rows] by 1."""
        tokens = torch.cat([tokens, after[:, None]], 1).scatter(1, accepted[:, None], after[:, None])
        writers = torch.zeros_like(tokens).scatter(1, accepted[:, None], 1)
        return cls(rows, tokens, writers, accepted + 1)


class Text:
    """The rows of a batch, left-aligned: ``ids[r, :lengths[r]]`` is prompt and answer of row r.

    ``signed`` is who wrote each. What lies beyond ``lengths`` is scratch
    for drafts. ``rows`` lists the rows still open. Ends (EOS, the budget) are
    known here and nowhere else; ``append`` reads the device once.
    """

    def __init__(
        self, input_ids: Tensor, attention_mask: Tensor, budget: int, scratch: int, eos: tuple[int, ...], seed: int
    ):
        batch = len(input_ids)
        self.device, self.budget = input_ids.device, budget
        self.prompts = attention_mask.sum(1)
        longest = int(self.prompts.max())
        self.capacity = longest + budget + scratch
        self.ids = input_ids.new_zeros(batch, self.capacity)
        order = attention_mask.long().argsort(dim=1, descending=True, stable=True)[:, :longest]
        self.ids[:, :longest] = input_ids.gather(1, order) * attention_mask.gather(1, order)
        self.lengths = self.prompts.clone()
        self.signed = torch.full(self.ids.shape, -1, dtype=torch.int8, device=self.device)
        self.eos = torch.tensor(eos, dtype=torch.long, device=self.device)
        self.seeds = torch.arange(batch, device=self.device) + seed
        self.rows = torch.arange(batch, device=self.device)

    def uniform(self, rows: Tensor, positions: Tensor, stream: int) -> Tensor:
        """Noise for ``rows`` [r] at ``positions`` [r] or [r, k], counted from the first token of the answer."""
        seeds = self.seeds[rows]
        return noise(seeds if positions.dim() == 1 else seeds[:, None], positions, stream)

    def ends(self, tokens: Tensor) -> Tensor:
        """True where a token would end the answer."""
        return torch.isin(tokens, self.eos)

    def append(self, commit: Commit, stop: Callable[[int, int], int | None] | None = None) -> None:
        """Write a commit, cut at EOS and at the budget, and close the rows that ended.

        ``stop(row, new)`` may name a shorter length of the answer at which the row ends (stop strings).
        """
        rows, tokens = commit.rows, commit.tokens
        start = self.lengths[rows]
        column = torch.arange(tokens.shape[1], device=self.device)
        room = self.budget - (start - self.prompts[rows])
        counts = torch.minimum(commit.counts, room)
        ending = self.ends(tokens) & (column < counts[:, None])
        first = torch.where(ending, column + 1, tokens.shape[1] + 1).amin(1)
        counts = torch.minimum(counts, first)
        where = start[:, None] + column
        self.ids[rows[:, None], where] = tokens
        self.signed[rows[:, None], where] = commit.writers.to(torch.int8)
        self.lengths[rows] = start + counts
        closed = (first <= counts) | (counts == room)
        if stop is not None:
            closed = closed | self._stopped(rows, counts, stop)
        self.rows = rows[~closed] if bool(closed.any()) else rows

    def _stopped(self, rows: Tensor, counts: Tensor, stop: Callable[[int, int], int | None]) -> Tensor:
        closed = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
        for i, (row, new) in enumerate(zip(rows.tolist(), counts.tolist(), strict=True)):
            length = stop(row, new)
            if length is not None:
                self.lengths[row] = self.prompts[row] + length
                closed[i] = True
        return closed

    def answer(self, row: int) -> list[int]:
        """Token ids of a row's answer so far."""
        return self.ids[row, self.prompts[row] : self.lengths[row]].tolist()

    def writers_of(self, row: int) -> list[int]:
        """Index of the model that wrote each token of a row's answer so far."""
        return self.signed[row, self.prompts[row] : self.lengths[row]].tolist()
