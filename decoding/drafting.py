"""Who drafts: a smaller model, token by token, or anything that proposes tokens without chance."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from decoding.run import Run
from decoding.sampling import DRAW
from decoding.text import Text
from decoding.trail import Trail


class Proposer(Protocol):
    """Drafts without a model.

    ``ids`` [batch, capacity] are the texts, left-aligned, of which the first ``lengths`` [r] tokens of the rows
    ``rows`` [r] count. Returns tokens [r, limit] and how many of them [r] are meant, at most ``limit`` and none where
    it has no idea. What it returns may depend on nothing else: no state, no chance.
    """

    def propose(self, ids: Tensor, lengths: Tensor, rows: Tensor, limit: int) -> tuple[Tensor, Tensor]: ...


def noise(text: Text, rows: Tensor, starts: Tensor, place: Tensor, stream: int, length: int) -> Tensor:
    """Noise [r] or [r, k] of the round that begins after ``starts`` answer tokens, at ``place`` in its draft.

    A position that is drafted again gets new noise: a rule that looks beyond the first rejection has already used the
    old, and what it decided would leak into the new draft. Rounds of one row never begin at the same place.
    """
    return text.uniform(rows, starts * (length + 1) + place, stream)


def propose(run: Run, proposer: Proposer, rows: Tensor, lengths: Tensor, room: Tensor, limit: int):
    """A proposed draft in the text's scratch: tokens [r, k], logits [r, k, vocab] of certainty, lengths [r]."""
    text, vocab = run.text, run.sessions[-1].vocab
    tokens, drafted = proposer.propose(text.ids, lengths, rows, limit)
    drafted = torch.minimum(drafted, room)
    tokens = tokens[:, : int(drafted.max())]
    text.ids[rows[:, None], lengths[:, None] + torch.arange(tokens.shape[1], device=rows.device)] = tokens
    logits = torch.full((*tokens.shape, vocab), -torch.inf, device=rows.device)
    return tokens, logits.scatter_(2, tokens[..., None], 0.0), drafted


def draft(
    run: Run, trail: Trail | None, rows: Tensor, lengths: Tensor, room: Tensor, limit: int, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """A draft by the first model in the text's scratch: tokens [r, k], logits [r, k, vocab], lengths [r]."""
    text, session = run.text, run.sessions[0]
    starts, drafted = lengths - text.prompts[rows], torch.zeros_like(rows)
    going = drafted < room
    tokens, logits = [], []
    while bool(going.any()):
        which = going.nonzero().squeeze(1)
        at, place = rows[which], drafted[which]
        now = lengths[which] + place
        row_logits, hidden = session.next(text.ids, now, at, trail is not None and trail.needs_hidden)
        stopped = _stopped(trail, row_logits, at, now, hidden)
        ahead = which if keep else which[~stopped]
        drawn = run.sampling.draw(row_logits, noise(text, at, starts[which], place, DRAW, limit))
        text.ids[at, now] = drawn
        drafted[ahead] += 1
        tokens.append(_spread(drawn, which, len(rows)))
        logits.append(_spread(row_logits, which, len(rows)))
        going = torch.zeros_like(going).index_fill(0, which[~stopped], True) & (drafted < room)
    k = int(drafted.max())
    if k == 0:
        return lengths.new_zeros(len(rows), 0), torch.empty(len(rows), 0, session.vocab, device=rows.device), drafted
    return torch.stack(tokens[:k], 1), torch.stack(logits[:k], 1), drafted


def _stopped(trail: Trail | None, logits: Tensor, rows: Tensor, lengths: Tensor, hidden: Tensor | None) -> Tensor:
    if trail is None:
        return torch.zeros_like(rows, dtype=torch.bool)
    return trail.policy(trail.step(logits, rows, lengths, hidden))


def _spread(values: Tensor, which: Tensor, rows: int) -> Tensor:
    """[rows, ...] with ``values`` at ``which`` and zeros elsewhere."""
    if len(which) == rows:
        return values
    return values.new_zeros(rows, *values.shape[1:]).index_copy(0, which, values)
