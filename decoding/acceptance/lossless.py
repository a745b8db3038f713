"""Lossless acceptance rules: the output is distributed as the target's own."""

from __future__ import annotations

import torch
from torch import Tensor

from decoding.acceptance.draft_block import Acceptance, DraftBlock, gather_at, last_true, leading_true, length_mask


class Exact:
    """Speculative sampling: keep x with probability min(1, p(x) / q(x)) (Leviathan et al. 2211.17192, algorithm 1).

    After a rejection the next token is drawn from max(0, p - q), normalised. Greedy keeps the drafted tokens that are
    the target's best, and the target's best follows.
    """

    def __call__(self, draft: DraftBlock) -> tuple[Tensor, Tensor]:
        if draft.sampling.greedy:
            return draft.accept(draft.is_best())
        return self.verify(draft, *draft.probabilities())

    def verify(self, draft: DraftBlock, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Speculative sampling of any distribution p [r, k + 1, vocab] with drafts from q [r, k, vocab]."""
        kept = draft.accept_noise * draft.of_drafted(q) < draft.of_drafted(p)
        return self.resample_after(draft, p, q, kept)

    def resample_after(self, draft: DraftBlock, p: Tensor, q: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Accept the leading True of ``kept`` [r, k]; the next token is drawn from the residual distribution there."""
        accepted = leading_true(kept, draft.lengths)
        return accepted, draft.draw(self._residual(p, q, accepted, draft.lengths), accepted)

    def _residual(self, p: Tensor, q: Tensor, accepted: Tensor, lengths: Tensor) -> Tensor:
        """[r, vocab] max(0, p - q), unnormalised, where a token was rejected; p after a fully accepted draft."""
        p_next = gather_at(p, accepted)
        q_next = gather_at(torch.cat([q, torch.zeros_like(p[:, :1])], 1), accepted)
        rejected = (accepted < lengths)[:, None]
        residual = torch.where(rejected, (p_next - q_next).clamp(min=0), p_next)
        # If p = q up to rounding, no weight is left; then p itself is right.
        return torch.where(residual.sum(-1, keepdim=True) > 0, residual, p_next)


class Block(Exact):
    """Block verification: on average accepts at least as much as ``Exact`` (Sun et al. 2403.10444).

    With P_0 = 1 and P_i = min(1, P_i-1 p(x_i) / q(x_i)), prefix i of n passes with probability
    h_i = s_i / (s_i + 1 - P_i), where s_i = sum of max(0, P_i p - q) over the next token, and h_n = P_n.
    The longest prefix that passes is kept, even past one that fails, and the next token is drawn from
    max(0, P_i p - q). Lossless only if no other block uses the same noise. Greedy is ``Exact``.
    """

    def verify(self, draft: DraftBlock, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        prefix = self._prefix(draft, p, q)
        excess = (prefix[..., None] * p)[:, :-1] - q
        s = torch.cat([excess, torch.zeros_like(p[:, :1])], 1).clamp(min=0).sum(-1)
        whole = torch.arange(prefix.shape[1], device=p.device) == draft.lengths[:, None]
        # 0 / 0 where p = q: the next token would certainly pass.
        passes = torch.where(whole, prefix, (s / (s + 1 - prefix)).nan_to_num(1.0))
        accepted = last_true(draft.accept_noise < passes[:, 1:], draft.lengths)
        scaled = gather_at(prefix, accepted)[:, None, None] * p
        return accepted, draft.draw(self._residual(scaled, q, accepted, draft.lengths), accepted)

    def _prefix(self, draft: DraftBlock, p: Tensor, q: Tensor) -> Tensor:
        """P_0 ... P_k [r, k + 1]. In logs this is a walk reflected at 0: the walk minus its running maximum."""
        step = draft.of_drafted(p).log() - draft.of_drafted(q).log()
        step = step.masked_fill(~length_mask(step, draft.lengths), 0.0)
        walk = torch.cat([torch.zeros_like(p[:, :1, 0]), step], 1).cumsum(1)
        return (walk - walk.cummax(1).values).exp()


class Strict:
    """``rule``, but drafts that begin within the first ``prefix`` tokens of an answer are verified by ``Exact``.

    Lossy rules lose an aligned model's refusals long before they lose usefulness, and refusals are decided in the first
    tokens (Secure speculative decoding, 2610.08678). Raises ValueError for a negative ``prefix``.
    """

    def __init__(self, rule: Acceptance, prefix: int):
        if prefix < 0:
            raise ValueError(f"strict_prefix must be at least 0, not {prefix}")
        self.rule, self.prefix, self.exact = rule, prefix, Exact()

    def __call__(self, draft: DraftBlock) -> tuple[Tensor, Tensor]:
        strict = draft.starts < self.prefix
        pairs = zip(self.exact(draft), self.rule(draft), strict=True)
        accepted, after = (torch.where(strict, exact, lossy) for exact, lossy in pairs)
        return accepted, after
