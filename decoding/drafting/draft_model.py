"""Who drafts: a smaller model, token by token, or anything that proposes tokens without chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from decoding.kv_cache.session import ReadSpan
from decoding.state.generation_state import GenerationState
from decoding.state.policy_state import PolicyState
from decoding.state.sampling import DRAW
from decoding.state.token_buffer import TokenBuffer


class Proposer(Protocol):
    """Drafts without a model.

    ``ids`` [batch, capacity] are the texts, left-aligned, of which the first ``lengths`` [r] tokens of the rows
    ``rows`` [r] count. Returns tokens [r, limit] and how many of them [r] are meant, at most ``limit`` and none where
    it has no idea. What it returns may depend on nothing else: no state, no chance.
    """

    def draft_with_proposer(self, ids: Tensor, lengths: Tensor, rows: Tensor, limit: int) -> tuple[Tensor, Tensor]: ...


@dataclass(slots=True)
class DraftOutput:
    """Drafts of r rows, which lie in the text's scratch too."""

    tokens: Tensor
    """[r, k] ids"""
    logits: Tensor
    """[r, k, vocab] they were drawn from; 0 and -inf where nothing was left to chance"""
    lengths: Tensor
    """[r] how many of the tokens are meant"""
    total: int | Tensor
    """how many of all rows are; still on the device where nobody has waited for it"""
    even: bool
    """whether the target reads all k of every row"""


def draft_noise(buffer: TokenBuffer, rows: Tensor, starts: Tensor, place: Tensor, stream: int, length: int) -> Tensor:
    """Noise [r] or [r, k] of the round that begins after ``starts`` answer tokens, at ``place`` in its draft.

    A position that is drafted again gets new noise: a rule that looks beyond the first rejection has already used the
    old, and what it decided would leak into the new draft. Rounds of one row never begin at the same place.
    """
    return buffer.uniform(rows, starts * (length + 1) + place, stream)


def draft_with_proposer(
    state: GenerationState, proposer: Proposer, rows: Tensor, lengths: Tensor, room: Tensor, limit: int
) -> DraftOutput:
    """A draft by ``proposer`` of at most ``room`` [r] tokens, as if it had been certain of it."""
    buffer, vocab = state.buffer, state.sessions[-1].vocab
    tokens, drafted = proposer.propose(buffer.ids, lengths, rows, limit)
    drafted = torch.minimum(drafted, room)
    most, total = torch.stack([drafted.max(), drafted.sum()]).tolist()
    tokens = tokens[:, :most]
    buffer.ids[rows[:, None], lengths[:, None] + torch.arange(most, device=rows.device)] = tokens
    logits = torch.full((*tokens.shape, vocab), -torch.inf, device=rows.device)
    logits.scatter_(2, tokens[..., None], 0.0)
    return DraftOutput(tokens, logits, drafted, total, total == tokens.numel())


def draft_with_model(
    state: GenerationState,
    policy_state: PolicyState | None,
    rows: Tensor,
    lengths: Tensor,
    room: Tensor,
    limit: int,
    keep_stop_token: bool,
) -> DraftOutput:
    """A draft by the first model of at most ``room`` [r] tokens, ``limit`` where the budget allows."""
    buffer, session, hidden = (
        state.buffer,
        state.sessions[0],
        policy_state is not None and policy_state.needs.needs_hidden,
    )
    chance = sampling_noise(state, rows, lengths, limit)
    span = None if keep_stop_token else unread_span(buffer, limit)
    # Without a stop the host knows how a draft goes, until a budget comes to its end.
    which, drafted, most, total = None, room, limit, limit * len(rows)
    tokens, logits = [], []
    for place in range(limit + 1):
        if (place > 0 and policy_state is not None) or buffer.room <= limit:
            which, most, total = _going(drafted, place)
        if place >= most:
            break
        at, now = _of(rows, which), _of(lengths, which) + place
        row_logits, states = session.next(buffer.ids, now, at, hidden, span)
        span = ReadSpan(buffer.longest + place + 1, 1)
        if policy_state is not None:
            stopped = policy_state.decide(row_logits, at, now, states)
            drafted = torch.where(_spread(stopped, which, len(rows)), place + keep_stop_token, drafted)
        drawn = state.sampling.draw(row_logits, _of(chance[:, place], which))
        buffer.ids[at, now] = drawn
        tokens.append(_spread(drawn, which, len(rows)))
        logits.append(_spread(row_logits, which, len(rows)))
    if most == 0:
        nothing = torch.empty(len(rows), 0, session.vocab, device=rows.device)
        return DraftOutput(rows.new_empty(len(rows), 0), nothing, drafted, 0, even=True)
    even = total == most * len(rows)
    return DraftOutput(torch.stack(tokens[:most], 1), torch.stack(logits[:most], 1), drafted, total, even)


def sampling_noise(state: GenerationState, rows: Tensor, lengths: Tensor, limit: int) -> Tensor:
    """Noise [r, limit] to draw a draft with."""
    if state.sampling.greedy:
        return torch.zeros(len(rows), limit, device=rows.device)
    place = torch.arange(limit, device=rows.device)
    return draft_noise(state.buffer, rows, (lengths - state.buffer.prompts[rows])[:, None], place, DRAW, limit)


def _going(drafted: Tensor, place: int) -> tuple[Tensor | None, int, int]:
    """Which rows draft more than ``place`` tokens, None for all; the most that one of them does; the sum."""
    further = drafted > place
    most, total, going = torch.stack([drafted.max(), drafted.sum(), further.sum()]).tolist()
    return further.nonzero().squeeze(1) if 0 < going < len(drafted) else None, most, total


def unread_span(buffer: TokenBuffer, limit: int) -> ReadSpan | None:
    """What the draft has not read of any row: the last token, and the one before it where its whole draft was kept."""
    fewest, most = buffer.gained
    if fewest <= limit < most:
        return None  # some rows one, some two
    return buffer.span(1 if most <= limit else 2)


def _of(values: Tensor, which: Tensor | None) -> Tensor:
    """The entries ``which`` of ``values`` [r], all for None."""
    return values if which is None else values[which]


def _spread(values: Tensor, which: Tensor | None, rows: int) -> Tensor:
    """[rows, ...] with ``values`` at ``which`` and zeros elsewhere."""
    if which is None:
        return values
    return values.new_zeros(rows, *values.shape[1:]).index_copy(0, which, values)
