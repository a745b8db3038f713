"""Backoff decoding: policies decide, token by token, which of N models writes ("Backoff Decoding", section 3)."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from decoding.kv_cache.session import ReadSpan, even_span
from decoding.models.lm import LM
from decoding.state.ahead import AheadSteps, Launched, write_ahead
from decoding.state.generation_state import GenerationState
from decoding.state.host_reads import send
from decoding.state.policy_state import PolicyState
from decoding.state.token_buffer import Commit, Heard
from decoding.step import Policy, PolicyNeeds


class Backoff:
    """Models cheapest first and one policy per model but the last; policy i escalates tokens of model i to model i + 1.

    A model reads what it has missed, in one forward, when a token is next escalated to it. All models draw from the
    same noise, so always escalating equals the last model alone, with sampling too. With ``verify_eos`` an EOS by any
    model but the last escalates: a small model never ends an answer unchecked.

    Raises ValueError unless there are at least two models and exactly one policy fewer, each made for its model.
    """

    scratch: ClassVar[int] = 0
    shows_target: ClassVar[bool] = False  # whether the policies see the larger model's distribution

    def __init__(self, models: Sequence[LM], policies: Policy | Sequence[Policy], verify_eos: bool = True):
        self.models = list(models)
        self.policies = [policies] if callable(policies) else list(policies)
        self.verify_eos = verify_eos
        if len(self.models) < 2 or len(self.policies) != len(self.models) - 1:
            raise ValueError(
                f"backoff needs at least 2 models and one policy per model but the last, "
                f"not {len(self.models)} models and {len(self.policies)} policies"
            )
        for lm, policy in zip(self.models, self.policies, strict=False):
            PolicyNeeds.of(policy).check(lm, self.shows_target)

    def write(self, state: GenerationState) -> Iterator[Commit | Heard]:
        buffer = state.buffer
        policy_states = [PolicyState(policy, buffer, i) for i, policy in enumerate(self.policies)]
        state.escalated = [0] * len(self.policies)
        while True:
            rows = buffer.rows
            tokens, writers, _ = self._next_tokens(state, policy_states, 0, rows)
            yield Commit.one(rows, tokens, writers)
            if state.goes_ahead and type(self)._escalates is Backoff._escalates:
                yield from self._ahead(state, policy_states)

    def _ahead(self, state: GenerationState, policy_states: list[PolicyState]) -> Iterator[Heard]:
        """The same text, token by token, without the host waiting for the first policy."""
        buffer, steps = state.buffer, AheadSteps(state, policy_states[0], self.verify_eos)
        read = state.sessions[1].read.tolist()
        buffer.on_restart.append(lambda row: operator.setitem(read, row, 0))

        def answer(up: list[int], lengths: list[int], launched: Launched) -> None:
            rows, all_rows = buffer.every, up == launched.order
            if len(up) < len(rows):
                rows = send(up, buffer.device)
            best = launched.best
            if not all_rows:
                best = best[send([launched.order.index(row) for row in up], buffer.device)]
            gaps = [length - read[row] for row, length in zip(up, lengths, strict=True)]
            span = even_span(gaps, lengths)
            state.escalated[0] += len(up)
            theirs, wrote, large = self._next_tokens(state, policy_states, 1, rows, span)
            policy_states[0].checked_by_large(rows, buffer.lengths[rows] + 1, large.argmax(-1) == best, large)
            buffer.advance(rows, theirs, wrote, torch.ones_like(theirs, dtype=torch.bool))
            for row, length in zip(up, lengths, strict=True):
                read[row] = length

        return write_ahead(steps, answer)

    def _next_tokens(
        self,
        state: GenerationState,
        policy_states: list[PolicyState],
        i: int,
        rows: Tensor,
        span: ReadSpan | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Next tokens [r] of ``rows`` [r] that escalated to model i, their writers [r], its logits [r, vocab]."""
        buffer, lengths = state.buffer, state.buffer.lengths[rows]
        policy_state = policy_states[i] if i < len(policy_states) else None
        # Only the first model reads every token, so each row has exactly one unread.
        span = buffer.span(1) if i == 0 else span
        hidden = policy_state is not None and policy_state.needs.needs_hidden
        logits, states = state.sessions[i].next(buffer.ids, lengths, rows, hidden, span)
        seen = state.processed(logits, rows, lengths), states
        tokens = state.draw(seen[0], rows, lengths)
        writers = torch.full_like(tokens, i)
        if policy_state is None:
            return tokens, writers, seen[0]
        escalates = self._escalates(state, i, policy_state, rows, seen, tokens)
        if self.verify_eos:
            escalates = escalates | buffer.ends(tokens)
        up = escalates.nonzero().squeeze(1)
        if len(up):
            state.escalated[i] += len(up)
            theirs, wrote, large = self._next_tokens(state, policy_states, i + 1, rows[up])
            agreed = large.argmax(-1) == seen[0][up].argmax(-1)
            policy_state.checked_by_large(rows[up], lengths[up] + 1, agreed, large)
            tokens, writers = tokens.index_copy(0, up, theirs), writers.index_copy(0, up, wrote)
        return tokens, writers, seen[0]

    def _escalates(self, state: GenerationState, i: int, policy_state: PolicyState, rows, seen, drawn) -> Tensor:
        """bool [r]: the decision of policy i on the tokens ``drawn`` [r] for ``rows`` [r].

        ``seen``: logits [r, vocab] of model i and, where the policy needs them, hidden states [r, width], else None.
        """
        logits, hidden = seen
        return policy_state.decide(logits, rows, state.buffer.lengths[rows], hidden)
