"""The tokens of a batch while they are being written: ids, writers, and where each row ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from decoding.kv_cache.session import ReadSpan
from decoding.state.host_reads import read_now
from decoding.state.sampling import counter_noise


@dataclass(slots=True)
class Commit:
    """Tokens that a decoder has decided on, for the rows ``rows`` [r] of the batch.

    ``tokens`` [r, k] and ``writers`` [r, k], of which the first ``counts`` [r] of each row are committed.
    """

    rows: Tensor
    tokens: Tensor
    writers: Tensor
    counts: Tensor

    @classmethod
    def one(cls, rows: Tensor, tokens: Tensor, writers: Tensor) -> Commit:
        """One token [r] in each row."""
        return cls(rows, tokens[:, None], writers[:, None], torch.ones_like(rows))

    @classmethod
    def checked(cls, rows: Tensor, tokens: Tensor, accepted: Tensor, after: Tensor) -> Commit:
        """The first ``accepted`` [r] of drafted ``tokens`` [r, k], by writer 0; then ``after`` [r], by writer 1."""
        tokens = torch.cat([tokens, after[:, None]], 1).scatter(1, accepted[:, None], after[:, None])
        writers = torch.zeros_like(tokens).scatter(1, accepted[:, None], 1)
        return cls(rows, tokens, writers, accepted + 1)


@dataclass(slots=True)
class Heard:
    """What the host hears, late, of a step that the device has committed (``TokenBuffer.advance``), by row.

    ``escalated``: whether the row waits for a larger model. A row whose length is its limit has ended.
    """

    escalated: list[int]
    lengths: list[int]
    limits: list[int]
    broken: bool  # whether a model has returned NaN


def left_pad(rows: Sequence[Sequence[int]], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """(input_ids, attention_mask) [rows, longest], left-padded with 0."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    return ids, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)


class TokenBuffer:
    """The rows of a batch, left-aligned: ``ids[r, :lengths[r]]`` is the prompt and the answer of row r.

    ``writers``, of the same shape, is the index of the model that wrote each token, -1 in the prompt. Columns after
    ``lengths`` are scratch for drafts. ``rows`` lists the rows still open. Only this class decides where a row ends
    (EOS, the budget), in ``append``, the one place that waits for the device.

    After an ``append`` the host knows, of all rows that were open before it: the greatest length ``longest``, the least
    remaining budget ``room``, and in ``gained`` the least and the greatest number of tokens that a row gained; they are
    0 before the first, and after a ``restart``. ``rounds`` counts since then.
    """

    def __init__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        budget: int,
        scratch: int,
        eos: tuple[int, ...],
        seed: int,
        longest_prompt: int = 0,
    ):
        batch = len(input_ids)
        self.device, self.budget = input_ids.device, budget
        self.prompts = attention_mask.sum(1)
        self.longest, self.room, self.gained, self.rounds = int(self.prompts.max()), budget, (0, 0), 0
        self.capacity = max(self.longest, longest_prompt) + budget + scratch
        self.on_restart: list[Callable[[int], None]] = []
        """called with a row that begins another text, by whoever keeps something of each row"""
        self.ids = input_ids.new_zeros(batch, self.capacity)
        order = attention_mask.long().argsort(dim=1, descending=True, stable=True)[:, : self.longest]
        self.ids[:, : self.longest] = input_ids.gather(1, order) * attention_mask.gather(1, order)
        self.lengths, self.limits = self.prompts.clone(), self.prompts + budget
        self.writers = torch.full(self.ids.shape, -1, dtype=torch.int8, device=self.device)
        self.eos = torch.tensor(eos, dtype=torch.long, device=self.device)
        self.seeds = torch.arange(batch, device=self.device) + seed
        self.rows = self.every = torch.arange(batch, device=self.device)

    def uniform(self, rows: Tensor, positions: Tensor, stream: int) -> Tensor:
        """Noise for ``rows`` [r] at ``positions`` [r] or [r, k] of the answer, from 0."""
        seeds = self.seeds[rows]
        return counter_noise(seeds if positions.dim() == 1 else seeds[:, None], positions, stream)

    def span(self, unread: int, drafted: int = 0) -> ReadSpan | None:
        """Read range of rows with ``unread`` tokens, of which ``drafted`` are after the text; None for the prompts."""
        return ReadSpan(self.longest + drafted, unread) if self.gained[1] else None

    def draft_room(self, rows: Tensor, length: int) -> Tensor:
        """[r] tokens that a draft may have, at most ``length``: the target writes one more within the budget."""
        return (self.limits[rows] - self.lengths[rows] - 1).clamp(max=length)

    def ends(self, tokens: Tensor) -> Tensor:
        """True where a token is an EOS."""
        return torch.isin(tokens, self.eos)

    def append(
        self,
        commit: Commit,
        stop: Callable[[int, int], int | None] | None = None,
        flags: Sequence[Tensor] = (),
    ) -> list[bool]:
        """Write a commit, cut at EOS and at the budget, and close the rows that end.

        ``stop(row, new)`` may return a shorter length of the answer at which the row ends (stop strings). Returns the
        values of ``flags`` [1], read together with the lengths: each read from a device costs a wait.
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
        _, _, self.room, fewest, ended, self.longest, _, most, *known = read_now(torch.cat([low, high, *flags]))
        self.gained = fewest, most
        self.rounds += 1
        self.rows = rows[~closed] if ended else rows
        return known

    def close(self, row: int) -> None:
        """End a row where it is."""
        self.rows = self.rows[self.rows != row]

    def restart(self, row: int, prompt: Tensor, seed: int, budget: int | None = None) -> None:
        """Let a closed row begin another text, after ``prompt`` [n], with draws of ``seed``, of ``budget`` tokens."""
        n = len(prompt)
        self.ids[row, :n] = prompt
        self.writers[row] = -1
        self.prompts[row] = self.lengths[row] = n
        self.limits[row], self.seeds[row] = n + (self.budget if budget is None else budget), seed
        self.rows = torch.cat([self.rows, self.every[row : row + 1]]).unique()  # late, it may be listed still
        facts = torch.stack([self.lengths[self.rows], self.lengths[self.rows] - self.limits[self.rows]]).amax(1)
        self.longest, over = facts.tolist()
        self.room, self.gained, self.rounds = -over, (0, 0), 0
        for restart in self.on_restart:
            restart(row)

    def advance(self, rows: Tensor, tokens: Tensor, writers: Tensor, going: Tensor) -> None:
        """Append a token [r] to each of ``rows`` [r] that is ``going`` [r] and has not ended, without the host.

        A row ends at an EOS, which becomes its limit, or at its budget. The host hears of it by ``hear``.
        """
        start = self.lengths[rows]
        going = going & (start < self.limits[rows])
        where = rows, start.clamp(max=self.capacity - 1)
        self.ids[where] = torch.where(going, tokens, self.ids[where])
        self.writers[where] = torch.where(going, writers.to(torch.int8), self.writers[where])
        self.lengths[rows] = lengths = start + going
        self.limits[rows] = torch.where(going & self.ends(tokens), lengths, self.limits[rows])

    def end_closed(self) -> None:
        """Put the limit of every closed row at its length, as ``advance`` does."""
        closed = torch.ones_like(self.every, dtype=torch.bool).index_fill(0, self.rows, False)
        self.limits = torch.where(closed, self.lengths, self.limits)

    def hear(self, heard: Heard) -> None:
        """Take note of a step that the device has committed; ``rows`` are all until every row has ended."""
        room = [limit - length for limit, length in zip(heard.limits, heard.lengths, strict=True)]
        self.longest, self.room = max(heard.lengths), min(room)
        self.rows = self.every if any(room) else self.every[:0]

    def keep(self, keep: Callable[[str, Tensor], Tensor], capacity: int) -> None:
        """Hold everything in tensors that keep their addresses, with room for ``capacity`` tokens in a row."""
        more = capacity - self.capacity
        self.ids, self.writers = F.pad(self.ids, (0, more)), F.pad(self.writers, (0, more), value=-1)
        self.capacity = capacity
        for name in ("ids", "writers", "lengths", "limits", "prompts", "eos", "seeds", "every"):
            setattr(self, name, keep(name, getattr(self, name)))

    def _stopped(self, rows: Tensor, counts: Tensor, stop: Callable[[int, int], int | None]) -> Tensor:
        closed = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
        for i, (row, new) in enumerate(zip(rows.tolist(), counts.tolist(), strict=True)):
            length = stop(row, new)
            if length is not None:
                self.lengths[row] = self.prompts[row] + length
                closed[i] = True
        return closed

    def answer(self, row: int, start: int = 0) -> list[int]:
        """Token ids of a row's answer so far, from its token ``start`` on."""
        return self.ids[row, self.prompts[row] + start : self.lengths[row]].tolist()

    def writers_of(self, row: int, start: int = 0) -> list[int]:
        """Index of the model that wrote each of these tokens."""
        return self.writers[row, self.prompts[row] + start : self.lengths[row]].tolist()
