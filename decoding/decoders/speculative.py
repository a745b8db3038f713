"""Speculative decoding: the draft proposes a block of tokens, the target verifies it in one forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from decoding.acceptance.draft_block import Acceptance, DraftBlock, gather_at
from decoding.acceptance.learned import VERIFY
from decoding.acceptance.lossless import Exact, Strict
from decoding.acceptance.rules import rule
from decoding.drafting.draft_model import DraftOutput, Proposer, draft_noise, draft_with_model, draft_with_proposer
from decoding.models.lm import LM
from decoding.models.vocabulary import check_compatible
from decoding.state.generation_state import GenerationState
from decoding.state.policy_state import PolicyState
from decoding.state.sampling import ACCEPT, REPLACE
from decoding.state.token_buffer import Commit
from decoding.step import Policy, PolicyNeeds


class Speculative:
    """Draft up to ``length`` tokens, until the policy ``stop`` ends the draft; ``accept`` decides how many are kept.

    The draft is a model or anything with ``propose``, such as ``PromptLookup(3)``; only the target is then in
    ``models``, yet writer 0 is the draft and 1 the target. Before each drafted token ``stop`` sees the draft's
    distribution: True ends the draft and drops that token, or with ``keep_stop_token`` drafts it as the last one, as
    transformers and OpenVINO do. With ``Exact`` or ``Block`` the output is distributed as the target's own (Leviathan
    et al. 2211.17192, section 2). Drafts that begin within the first ``strict_prefix`` tokens of an answer are verified
    by ``Exact``, whatever ``accept`` is.

    Raises ValueError unless there are a draft and a target, ``length`` is at least 1, ``strict_prefix`` at least 0,
    a ``stop`` policy has a draft model to read, and is made for it, and ``accept`` can tell anything with this draft.
    """

    def __init__(
        self,
        models: Sequence[LM | Proposer],
        length: int = 4,
        stop: Policy | None = None,
        accept: Acceptance | None = None,
        keep_stop_token: bool = False,
        strict_prefix: int = 0,
    ):
        if len(models) != 2:
            raise ValueError(f"speculative decoding takes [draft, target], not {len(models)} models")
        if length < 1:
            raise ValueError(f"the draft length must be at least 1, not {length}")
        self.proposer = models[0] if hasattr(models[0], "propose") else None
        if stop is not None and self.proposer is not None:
            raise ValueError("a stop policy reads the draft's distribution, and a draft without a model has none")
        if stop is not None:
            PolicyNeeds.of(stop).check(models[0])
        self.models = list(models) if self.proposer is None else [models[1]]
        self.length, self.stop, self.keep_stop_token, self.strict_prefix = length, stop, keep_stop_token, strict_prefix
        self.accept = Exact() if accept is None else accept
        if getattr(self.accept, "needs_every_token", False) and self._lacks_tokens(models):
            raise ValueError("this KL is infinite where the draft lacks a token of the target; take kl, js or tv")
        self.strict = Strict(self.accept, strict_prefix)
        self.scratch = length + 1

    def _lacks_tokens(self, models: Sequence[LM | Proposer]) -> bool:
        """Whether the draft never gives some token of the target a probability."""
        return self.proposer is not None or check_compatible(models)[0] is not None

    @property
    def draft_length(self) -> int | None:
        """Tokens that a model drafts in each round; None where a policy ends drafts or no model writes them."""
        return self.length if self.stop is None and self.proposer is None else None

    def write(self, state: GenerationState) -> Iterator[Commit]:
        buffer = state.buffer
        policy_state = PolicyState(self.stop, buffer) if self.stop is not None else None
        while True:
            rows = buffer.rows
            lengths = buffer.lengths[rows]
            drafted = self._draft(state, policy_state, rows)
            checked = self._check(state, rows, lengths, drafted)
            # Every round adds a token to every row, so the host knows when all are past the strict prefix.
            accept = self.strict if buffer.rounds < self.strict_prefix else self.accept
            accepted, after = accept(self._block(state, rows, lengths, drafted, checked))
            kept = lengths + accepted
            for session in state.sessions:
                session.rollback(rows, kept)
            state.drafted += drafted.total
            if policy_state is not None:
                policy_state.checked_by_large(rows, kept + 1, accepted == drafted.lengths, gather_at(checked, accepted))
            yield Commit.checked(rows, drafted.tokens, accepted, after)

    def _draft(self, state: GenerationState, policy_state: PolicyState | None, rows: Tensor) -> DraftOutput:
        if self.proposer is not None:
            return draft_with_proposer(state, self.proposer, rows, self.length)
        return draft_with_model(state, policy_state, rows, self.length, self.keep_stop_token)

    def _check(self, state: GenerationState, rows: Tensor, lengths: Tensor, drafted: DraftOutput) -> Tensor:
        """Logits [r, k + 1, vocab] of the target after the text and after each drafted token."""
        buffer, k = state.buffer, drafted.tokens.shape[1]
        span = buffer.span(k + 1, k) if drafted.even else None
        end = lengths + (k if drafted.even else drafted.lengths)
        checked = state.sessions[-1].catch_up(buffer.ids, end, rows, logits_to_keep=k + 1, span=span)
        if drafted.even:
            return state.processed(checked, rows, lengths)
        # Rows are right-aligned: shift each to the left, to begin with its first drafted token.
        shift = (k - drafted.lengths)[:, None] + torch.arange(k + 1, device=rows.device)
        return state.processed(gather_at(checked, shift.clamp(max=k)), rows, lengths)

    def _block(
        self, state: GenerationState, rows: Tensor, lengths: Tensor, drafted: DraftOutput, checked: Tensor
    ) -> DraftBlock:
        k, starts = drafted.tokens.shape[1], lengths - state.buffer.prompts[rows]
        greedy = state.sampling.greedy

        def noise(stream: int, size: int, unused: bool) -> Tensor:
            if unused:
                return torch.zeros(len(rows), size, device=rows.device)
            place = torch.arange(size, device=rows.device)
            return draft_noise(state.buffer, rows, starts[:, None], place, stream, self.length)

        return DraftBlock(
            tokens=drafted.tokens,
            lengths=drafted.lengths,
            draft_logits=drafted.logits,
            target_logits=checked,
            sampling=state.sampling,
            # Greedy acceptance needs no noise, and of the rules only ``Learned`` has a policy.
            accept_noise=noise(ACCEPT, k, unused=greedy),
            next_noise=noise(REPLACE, k + 1, unused=greedy),
            policy_noise=noise(VERIFY, k, unused=not hasattr(self.accept, "policy")),
            starts=starts,
            before=state.buffer.ids[rows, lengths - 1],
        )


def from_settings(
    models: Sequence[LM], policy: Policy | None, length: int, keep_stop_token: bool, accept: dict[str, Any]
) -> Speculative:
    """The decoder as the registry calls it. A policy that never stops is not asked; ``accept`` is a rule by name."""
    stop = None if PolicyNeeds.of(policy).never else policy
    return Speculative(models, length, stop, rule(**accept), keep_stop_token)
