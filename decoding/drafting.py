"""Who drafts: a smaller model, token by token, or anything that proposes tokens without chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from decoding.run import Run
from decoding.sampling import DRAW
from decoding.session import Span
from decoding.text import Text
from decoding.trail import Trail


class Proposer(Protocol):
    """Drafts without a model.

    ``ids`` [batch, capacity] are the texts, left-aligned, of which the first ``lengths`` [r] tokens of the rows
    ``rows`` [r] count. Returns tokens [r, limit] and how many of them [r] are meant, at most ``limit`` and none where
    it has no idea. What it returns may depend on nothing else: no state, no chance.
    """

    def propose(self, ids: Tensor, lengths: Tensor, rows: Tensor, limit: int) -> tuple[Tensor, Tensor]: ...


@dataclass(slots=True)
class Drafted:
    """Drafts of r rows, which lie in the text's scratch too."""

    tokens: Tensor
    """[r, k] ids"""
    logits: Tensor
    """[r, k, vocab] they were drawn from; 0 and -inf where nothing was left to chance"""
    lengths: Tensor
    """[r] how many of the tokens are meant"""
    total: int
    """how many of all rows are"""

    @property
    def even(self) -> bool:
        """Whether all rows drafted all k."""
        return self.total == self.tokens.numel()


def noise(text: Text, rows: Tensor, starts: Tensor, place: Tensor | int, stream: int, length: int) -> Tensor:
    """Noise [r] or [r, k] of the round that begins after ``starts`` answer tokens, at ``place`` in its draft.

    A position that is drafted again gets new noise: a rule that looks beyond the first rejection has already used the
    old, and what it decided would leak into the new draft. Rounds of one row never begin at the same place.
    """
    return text.uniform(rows, starts * (length + 1) + place, stream)


def propose(run: Run, proposer: Proposer, rows: Tensor, lengths: Tensor, room: Tensor, limit: int) -> Drafted:
    """A draft by ``proposer`` of at most ``room`` [r] tokens, as if it had been certain of it."""
    text, vocab = run.text, run.sessions[-1].vocab
    tokens, drafted = proposer.propose(text.ids, lengths, rows, limit)
    drafted = torch.minimum(drafted, room)
    most, total = torch.stack([drafted.max(), drafted.sum()]).tolist()
    tokens = tokens[:, :most]
    text.ids[rows[:, None], lengths[:, None] + torch.arange(most, device=rows.device)] = tokens
    logits = torch.full((*tokens.shape, vocab), -torch.inf, device=rows.device)
    return Drafted(tokens, logits.scatter_(2, tokens[..., None], 0.0), drafted, total)


def draft(
    run: Run, trail: Trail | None, rows: Tensor, lengths: Tensor, room: Tensor, limit: int, keep: bool
) -> Drafted:
    """A draft by the first model of at most ``room`` [r] tokens, ``limit`` where the budget allows."""
    text, session = run.text, run.sessions[0]
    # Without a stop the host knows how the draft goes, until a budget comes to its end.
    known = trail is None and text.room > limit
    span = _unread(text, limit) if trail is None else None
    which, drafted, tokens, logits = None, room, [], []
    for place in range(limit):
        if not known:
            which = (drafted > place).nonzero().squeeze(1)
            if not len(which):
                break
        at, begin = _of(rows, which), _of(lengths, which)
        row_logits, hidden = session.next(text.ids, begin + place, at, trail is not None and trail.needs_hidden, span)
        span = Span(text.longest + place + 1, 1)
        drawn = _drawn(run, row_logits, at, begin, place, limit)
        if trail is not None:
            stopped = trail.policy(trail.step(row_logits, at, begin + place, hidden))
            ended = torch.where(stopped, place + keep, drafted[which])
            drafted = drafted.index_copy(0, which, ended)
        text.ids[at, begin + place] = drawn
        tokens.append(_spread(drawn, which, len(rows)))
        logits.append(_spread(row_logits, which, len(rows)))
    if known:
        most, total = limit, limit * len(rows)
    else:
        most, total = torch.stack([drafted.max(), drafted.sum()]).tolist()
    if most == 0:
        return Drafted(
            rows.new_zeros(len(rows), 0), torch.empty(len(rows), 0, session.vocab, device=rows.device), drafted, 0
        )
    return Drafted(torch.stack(tokens[:most], 1), torch.stack(logits[:most], 1), drafted, total)


def _unread(text: Text, limit: int) -> Span | None:
    """What the draft has not read of any row: the last token, and the one before it where its whole draft was kept."""
    fewest, most = text.gained
    if fewest <= limit < most:
        return None  # some rows one, some two
    return text.span(1 if most <= limit else 2)


def _drawn(run: Run, logits: Tensor, rows: Tensor, lengths: Tensor, place: int, limit: int) -> Tensor:
    if run.sampling.greedy:
        return logits.argmax(-1)
    starts = lengths - run.text.prompts[rows]
    return run.sampling.draw(logits, noise(run.text, rows, starts, place, DRAW, limit))


def _of(values: Tensor, which: Tensor | None) -> Tensor:
    """The entries ``which`` of ``values`` [r], all for None."""
    return values if which is None or len(which) == len(values) else values[which]


def _spread(values: Tensor, which: Tensor | None, rows: int) -> Tensor:
    """[rows, ...] with ``values`` at ``which`` and zeros elsewhere."""
    if len(values) == rows:
        return values
    return values.new_zeros(rows, *values.shape[1:]).index_copy(0, which, values)
