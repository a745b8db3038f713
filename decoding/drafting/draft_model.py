"""Drafts for speculative decoding: by a smaller model, token by token, or by a proposer without a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from decoding.kv_cache.session import ReadSpan
from decoding.state.generation_state import GenerationState
from decoding.state.host_reads import LateRead, host_waits
from decoding.state.policy_state import PolicyState
from decoding.state.sampling import DRAW
from decoding.state.step_runner import StepRunner
from decoding.state.token_buffer import TokenBuffer


class Proposer(Protocol):
    """Drafts without a model.

    ``ids`` [batch, capacity] are the left-aligned texts; of the rows ``rows`` [r] the first ``lengths`` [r] tokens
    count. Returns tokens [r, limit] and how many of them [r] are the draft, 0 for none. The result must be a function
    of the texts: no state, no randomness.
    """

    def propose(self, ids: Tensor, lengths: Tensor, rows: Tensor, limit: int) -> tuple[Tensor, Tensor]: ...


@dataclass(slots=True)
class DraftOutput:
    """Drafts of r rows; the tokens are in the scratch of the ``TokenBuffer`` too."""

    tokens: Tensor  # [r, k] ids
    logits: Tensor  # [r, k, vocab] from which they were drawn; 0 and -inf for a proposer
    lengths: Tensor  # [r] tokens of each draft; later columns are padding
    total: int | Tensor  # sum of ``lengths``; a tensor where reading it would make the host wait
    even: bool  # whether the target reads all k tokens of every row


def draft_noise(buffer: TokenBuffer, rows: Tensor, starts: Tensor, place: Tensor, stream: int, length: int) -> Tensor:
    """Noise [r] or [r, k] at ``place`` in the draft of the round that begins after ``starts`` answer tokens.

    A position that is drafted again gets new noise: a rule that looks past the first rejection has already used the
    old, and its decision would leak into the new draft. Two rounds of a row never begin at the same position.
    """
    return buffer.uniform(rows, starts * (length + 1) + place, stream)


def draft_with_proposer(state: GenerationState, proposer: Proposer, rows: Tensor, limit: int) -> DraftOutput:
    """A draft by ``proposer`` of at most ``limit`` tokens, with logits as if it had been certain of them."""
    buffer, vocab, lengths = state.buffer, state.sessions[-1].vocab, state.buffer.lengths[rows]
    tokens, drafted = proposer.propose(buffer.ids, lengths, rows, limit)
    drafted = torch.minimum(drafted, buffer.draft_room(rows, limit))
    most, total = torch.stack([drafted.max(), drafted.sum()]).tolist()
    tokens = tokens[:, :most]
    buffer.ids[rows[:, None], lengths[:, None] + torch.arange(most, device=rows.device)] = tokens
    logits = torch.full((*tokens.shape, vocab), -torch.inf, device=rows.device)
    logits.scatter_(2, tokens[..., None], 0.0)
    return DraftOutput(tokens, logits, drafted, total, total == tokens.numel())


def draft_with_model(
    state: GenerationState, policy_state: PolicyState | None, rows: Tensor, limit: int, keep_stop_token: bool
) -> DraftOutput:
    """A draft by the first model of at most ``limit`` tokens, fewer where the policy or the budget ends it."""
    if host_waits(rows.device) and state.buffer.room > limit:
        return draft_ahead(state, policy_state, rows, limit, keep_stop_token)
    buffer, session, lengths = state.buffer, state.sessions[0], state.buffer.lengths[rows]
    hidden = policy_state is not None and policy_state.needs.needs_hidden
    noise = sampling_noise(state, rows, lengths, limit)
    span = unread_span(buffer, limit, keep_stop_token)
    # Without a stop policy the host knows the length of every draft, until a budget runs out.
    which, drafted, most, total = None, buffer.draft_room(rows, limit), limit, limit * len(rows)
    tokens, logits = [], []
    for place in range(limit + 1):
        if (place > 0 and policy_state is not None) or buffer.room <= limit:
            which, most, total = _still_drafting(drafted, place)
        if place >= most:
            break
        at, now = _select(rows, which), _select(lengths, which) + place
        row_logits, states = session.next(buffer.ids, now, at, hidden, span)
        row_logits = state.processed(row_logits, at, now)
        span = ReadSpan(buffer.longest + place + 1, 1)
        if policy_state is not None:
            stopped = policy_state.decide(row_logits, at, now, states)
            drafted = torch.where(_spread(stopped, which, len(rows)), place + keep_stop_token, drafted)
        drawn = state.sampling.draw(row_logits, _select(noise[:, place], which))
        buffer.ids[at, now] = drawn
        tokens.append(_spread(drawn, which, len(rows)))
        logits.append(_spread(row_logits, which, len(rows)))
    if most == 0:
        nothing = torch.empty(len(rows), 0, session.vocab, device=rows.device)
        return DraftOutput(rows.new_empty(len(rows), 0), nothing, drafted, 0, even=True)
    even = total == most * len(rows)
    return DraftOutput(torch.stack(tokens[:most], 1), torch.stack(logits[:most], 1), drafted, total, even)


def draft_ahead(
    state: GenerationState, policy_state: PolicyState | None, rows: Tensor, limit: int, keep_stop_token: bool
) -> DraftOutput:
    """``draft_with_model`` without waiting for a stop policy, for rows with room for ``limit`` tokens.

    On an accelerator, reading each decision would idle the device at every drafted token. So all rows draft until the
    host knows that all have stopped, one step late: it reads a decision while the device computes the next step.
    Tokens after a stop are excluded by ``lengths``. The target reads them at no cost: it is bound by its weights.
    """
    buffer, session = state.buffer, state.sessions[0]
    if state.runner is None:
        state.runner = StepRunner(state, policy_state)
    runner = state.runner
    span = unread_span(buffer, limit, keep_stop_token)
    now = {"rows": rows, "begin": buffer.lengths[rows], "drafted": buffer.draft_room(rows, limit)}
    now["place"] = torch.zeros((), dtype=torch.long, device=rows.device)
    rows, begin, drafted, place = (runner.keep(name, value) for name, value in now.items())

    def step(span: ReadSpan | None) -> tuple[Tensor, Tensor, Tensor]:
        """The token [r] of each draft, its logits [r, vocab], and whether any draft goes on."""
        lengths = begin + place
        hidden = policy_state is not None and policy_state.needs.needs_hidden
        row_logits, states = session.next(buffer.ids, lengths, rows, hidden, span)
        row_logits = state.processed(row_logits, rows, lengths)
        if policy_state is not None:
            stopped = policy_state.decide(row_logits, rows, lengths, states) & (drafted > place)
            drafted.copy_(torch.where(stopped, place + keep_stop_token, drafted))
        starts = begin - buffer.prompts[rows]
        greedy = state.sampling.greedy
        noise = None if greedy else draft_noise(buffer, rows, starts, place, DRAW, limit)
        drawn = state.sampling.draw(row_logits, noise)
        buffer.ids[rows, lengths] = drawn
        place.add_(1)
        return drawn, row_logits, (drafted > place).any()

    tokens, logits, going = [], [], []
    for i in range(limit):
        if policy_state is not None and i > 1 and not going[i - 2]:
            break
        if span is None:
            drawn, row_logits, goes_on = step(span)
        else:
            span = ReadSpan(runner.reach(span.reach), span.unread)
            what = "draft", limit, keep_stop_token, len(rows), span
            drawn, row_logits, goes_on = runner.run(what, span.unread * len(rows), lambda: step(span))  # noqa: B023
        if policy_state is not None:
            going.append(AsyncFlag(goes_on))
        tokens.append(drawn.clone())
        logits.append(row_logits.clone())
        span = ReadSpan(buffer.longest + i + 1, 1)
    if policy_state is not None and keep_stop_token:  # else the next round decides on the same position again
        policy_state.forget(rows, begin + drafted)
    total = limit * len(rows) if policy_state is None else drafted.sum()
    return DraftOutput(torch.stack(tokens, 1), torch.stack(logits, 1), drafted, total, even=True)


class AsyncFlag(LateRead):
    """A flag [] on its way to the host."""

    def __bool__(self) -> bool:
        return bool(self.arrived())


def sampling_noise(state: GenerationState, rows: Tensor, lengths: Tensor, limit: int) -> Tensor:
    """Noise [r, limit] to draw a draft with."""
    if state.sampling.greedy:
        return torch.zeros(len(rows), limit, device=rows.device)
    place = torch.arange(limit, device=rows.device)
    return draft_noise(state.buffer, rows, (lengths - state.buffer.prompts[rows])[:, None], place, DRAW, limit)


def unread_span(buffer: TokenBuffer, limit: int, stopped_early: bool = False) -> ReadSpan | None:
    """The unread tokens of every row: the last one, and the one before it where its whole draft was accepted.

    ``stopped_early``: a draft of fewer than ``limit`` tokens may have its last one unread too. Where one row may have
    one and another two, None; on a device all read two, for a token that is read again costs less than a wait.
    """
    fewest, most = buffer.gained
    if stopped_early or fewest <= limit < most:
        return buffer.span(2) if host_waits(buffer.device) else None
    return buffer.span(1 if most <= limit else 2)


def _still_drafting(drafted: Tensor, place: int) -> tuple[Tensor | None, int, int]:
    """The rows that draft more than ``place`` tokens, None for all; the longest draft; the sum of all drafts."""
    further = drafted > place
    most, total, count = torch.stack([drafted.max(), drafted.sum(), further.sum()]).tolist()
    return further.nonzero().squeeze(1) if 0 < count < len(drafted) else None, most, total


def _select(values: Tensor, which: Tensor | None) -> Tensor:
    """The entries ``which`` of ``values`` [r], all for None."""
    return values if which is None else values[which]


def _spread(values: Tensor, which: Tensor | None, rows: int) -> Tensor:
    """[rows, ...] with ``values`` at ``which`` and zeros elsewhere."""
    if which is None:
        return values
    return values.new_zeros(rows, *values.shape[1:]).index_copy(0, which, values)
