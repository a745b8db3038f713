"""How much of a draft is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from decoding.sampling import Sampling, invert


@dataclass(slots=True)
class Draft:
    """A drafted block as an acceptance rule sees it; r rows, at most k drafted tokens."""

    tokens: Tensor
    """[r, k] drafted ids"""
    lengths: Tensor
    """[r] how many of them are meant"""
    draft_logits: Tensor
    """[r, k, vocab] of the draft, before sampling"""
    target_logits: Tensor
    """[r, k + 1, vocab] of the target at the same positions and at the one after"""
    sampling: Sampling
    accept_noise: Tensor
    """[r, k]"""
    next_noise: Tensor
    """[r, k + 1]"""


class Acceptance(Protocol):
    """``(accepted [r], next token [r])``: how many drafted tokens are kept, and the one after them."""

    def __call__(self, draft: Draft) -> tuple[Tensor, Tensor]: ...


class Exact:
    """Speculative sampling: the output is distributed as the target's own (Leviathan et al. 2211.17192, algorithm 1).

    Greedy keeps the drafted tokens that are the target's best.
    """

    def __call__(self, draft: Draft) -> tuple[Tensor, Tensor]:
        if draft.sampling.greedy:
            best = draft.target_logits.argmax(-1)
            accepted = leading(best[:, :-1] == draft.tokens, draft.lengths)
            return accepted, best.gather(1, accepted[:, None]).squeeze(1)
        p = draft.sampling.probabilities(draft.target_logits)
        q = draft.sampling.probabilities(draft.draft_logits)
        p_drafted = p[:, :-1].gather(2, draft.tokens[..., None]).squeeze(2)
        q_drafted = q.gather(2, draft.tokens[..., None]).squeeze(2)
        accepted = leading(draft.accept_noise * q_drafted < p_drafted, draft.lengths)
        return accepted, invert(self._residual(p, q, accepted, draft.lengths), _at(draft.next_noise, accepted))

    def _residual(self, p: Tensor, q: Tensor, accepted: Tensor, lengths: Tensor) -> Tensor:
        """max(0, p - q) where a token was rejected, p itself after a draft that was kept whole (unnormalised)."""
        p_next = _at(p, accepted)
        q_next = _at(torch.cat([q, torch.zeros_like(p[:, :1])], 1), accepted)
        rejected = (accepted < lengths)[:, None]
        residual = torch.where(rejected, (p_next - q_next).clamp(min=0), p_next)
        # p = q up to rounding leaves nothing to draw from; then p itself is right.
        return torch.where(residual.sum(-1, keepdim=True) > 0, residual, p_next)


def leading(keep: Tensor, lengths: Tensor) -> Tensor:
    """[r] number of leading True of ``keep`` [r, k] within ``lengths`` [r]."""
    within = torch.arange(keep.shape[1], device=keep.device) < lengths[:, None]
    return (keep & within).long().cumprod(1).sum(1)


def _at(values: Tensor, index: Tensor) -> Tensor:
    """values[r, index[r]] for values [r, n, ...]."""
    return values[torch.arange(len(index), device=index.device), index]
