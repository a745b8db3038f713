"""The text being written: ids, who wrote them, and where each row ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decoding.kv_cache.session import ReadSpan
from decoding.state.sampling import counter_noise


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


class TokenBuffer:
    """The rows of a batch, left-aligned: ``ids[r, :lengths[r]]`` is prompt and answer of row r.

    ``writers`` is who wrote each. What lies beyond ``lengths`` is scratch
    for drafts. ``rows`` lists the rows still open. Ends (EOS, the budget) are
    known here and nowhere else; ``append`` reads the device once.

    What the host knows since then, of all rows that were open before it: none is longer than ``longest`` or has less
    than ``room`` tokens of its budget left, and ``gained`` is the fewest and the most tokens that one got.
    """

    def __init__(
        self, input_ids: Tensor, attention_mask: Tensor, budget: int, scratch: int, eos: tuple[int, ...], seed: int
    ):
        batch = len(input_ids)
        self.device, self.budget = input_ids.device, budget
        self.prompts = attention_mask.sum(1)
        self.longest, self.room, self.gained = int(self.prompts.max()), budget, (0, 0)
        self.capacity = self.longest + budget + scratch
        self.ids = input_ids.new_zeros(batch, self.capacity)
        order = attention_mask.long().argsort(dim=1, descending=True, stable=True)[:, : self.longest]
        self.ids[:, : self.longest] = input_ids.gather(1, order) * attention_mask.gather(1, order)
        self.lengths, self.limits = self.prompts.clone(), self.prompts + budget
        self.writers = torch.full(self.ids.shape, -1, dtype=torch.int8, device=self.device)
        self.eos = torch.tensor(eos, dtype=torch.long, device=self.device)
        self.seeds = torch.arange(batch, device=self.device) + seed
        self.rows = torch.arange(batch, device=self.device)

    def uniform(self, rows: Tensor, positions: Tensor, stream: int) -> Tensor:
        """Noise for ``rows`` [r] at ``positions`` [r] or [r, k], counted from the first token of the answer."""
        seeds = self.seeds[rows]
        return counter_noise(seeds if positions.dim() == 1 else seeds[:, None], positions, stream)

    def span(self, unread: int, drafted: int = 0) -> ReadSpan | None:
        """For open rows with ``unread`` tokens to read, ``drafted`` of them after the text; None for the prompts."""
        return ReadSpan(self.longest + drafted, unread) if self.gained[1] else None

    def ends(self, tokens: Tensor) -> Tensor:
        """True where a token would end the answer."""
        return torch.isin(tokens, self.eos)

    def append(
        self,
        commit: Commit,
        stop: Callable[[int, int], int | None] | None = None,
        flags: Sequence[Tensor] = (),
    ) -> list[bool]:
        """Write a commit, cut at EOS and at the budget, and close the rows that ended.

        ``stop(row, new)`` may name a shorter length of the answer at which the row ends (stop strings). Returns
        ``flags`` [1], which are read along: reading is what takes time.
        """
        rows, tokens = commit.rows, commit.tokens
        start, k = self.lengths[rows], tokens.shape[1]
        column = torch.arange(k, device=self.device)
        room = self.limits[rows] - start
        first = torch.where(self.ends(tokens), column, k).amin(1)
        counts = torch.minimum(torch.minimum(commit.counts, room), first + 1)
        where = rows[:, None], start[:, None] + column
        self.ids[where] = tokens
        self.writers[where] = commit.writers.to(torch.int8)
        self.lengths[rows] = lengths = start + counts
        left = room - counts
        closed = (first < counts) | (left == 0)
        if stop is not None:
            closed = closed | self._stopped(rows, counts, stop)
        low, high = torch.stack([closed, lengths, left, counts]).aminmax(dim=1)
        _, _, self.room, fewest, ended, self.longest, _, most, *known = torch.cat([low, high, *flags]).tolist()
        self.gained = fewest, most
        self.rows = rows[~closed] if ended else rows
        return known

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
        return self.writers[row, self.prompts[row] : self.lengths[row]].tolist()
