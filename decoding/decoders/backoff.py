"""Backoff decoding: a policy allocates each token to one of N models ("Backoff Decoding", section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from decoding.models.lm import LM
from decoding.state.generation_state import GenerationState
from decoding.state.policy_state import PolicyState
from decoding.state.token_buffer import Commit
from decoding.step import Policy


class Backoff:
    """Models cheapest first and one policy per model but the last; a policy that says True hands the token on.

    A model that is passed over lags behind and catches up, in one forward, when it is next asked. All models draw
    from the same noise, so always handing on equals the last model alone, with sampling too. With ``verify_eos`` an
    EOS by any model but the last is handed on: a small model never ends an answer unchecked.

    Raises ValueError unless there are at least two models and exactly one policy fewer.
    """

    scratch: ClassVar[int] = 0

    def __init__(self, models: Sequence[LM], policies: Policy | Sequence[Policy], verify_eos: bool = True):
        self.models = list(models)
        self.policies = [policies] if callable(policies) else list(policies)
        self.verify_eos = verify_eos
        if len(self.models) < 2 or len(self.policies) != len(self.models) - 1:
            raise ValueError(
                f"backoff needs at least 2 models and one policy per model but the last, "
                f"not {len(self.models)} models and {len(self.policies)} policies"
            )

    def write(self, state: GenerationState) -> Iterator[Commit]:
        buffer = state.buffer
        policy_states = [PolicyState(policy, buffer, i) for i, policy in enumerate(self.policies)]
        state.escalated = [0] * len(self.policies)
        while True:
            rows = buffer.rows
            tokens, writers, _ = self._ask(state, policy_states, 0, rows)
            yield Commit.one(rows, tokens, writers)

    def _ask(
        self, state: GenerationState, policy_states: list[PolicyState], i: int, rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next tokens [r] of ``rows`` [r], by model i or whom its policy hands them on to; the writers [r]; and
        the logits [r, vocab] of model i."""
        buffer, lengths = state.buffer, state.buffer.lengths[rows]
        policy_state = policy_states[i] if i < len(policy_states) else None
        # Only the first model reads every token, and so lags by one.
        span = buffer.span(1) if i == 0 else None
        seen = state.sessions[i].next(
            buffer.ids, lengths, rows, policy_state is not None and policy_state.needs.needs_hidden, span
        )
        tokens = state.draw(seen[0], rows, lengths)
        writers = torch.full_like(tokens, i)
        if policy_state is None:
            return tokens, writers, seen[0]
        handed = self._hand_on(state, i, policy_state, rows, seen, tokens)
        if self.verify_eos:
            handed = handed | buffer.ends(tokens)
        on = handed.nonzero().squeeze(1)
        if len(on):
            state.escalated[i] += len(on)
            theirs, wrote, large = self._ask(state, policy_states, i + 1, rows[on])
            agreed = large.argmax(-1) == seen[0][on].argmax(-1)
            policy_state.checked_by_large(rows[on], lengths[on] + 1, agreed, large)
            tokens, writers = tokens.index_copy(0, on, theirs), writers.index_copy(0, on, wrote)
        return tokens, writers, seen[0]

    def _hand_on(
        self,
        state: GenerationState,
        i: int,
        policy_state: PolicyState,
        rows: Tensor,
        seen: tuple[Tensor, Tensor | None],
        drawn: Tensor,
    ) -> Tensor:
        """bool [r]: whether policy i, shown the logits and hidden states ``seen``, hands the tokens ``drawn`` on."""
        logits, hidden = seen
        return policy_state.decide(logits, rows, state.buffer.lengths[rows], hidden)
