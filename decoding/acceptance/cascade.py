"""Speculative cascades: lossless speculative sampling of a mixture of both models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from decoding.acceptance.draft_block import DraftBlock, length_mask
from decoding.acceptance.lossless import Exact


class Cascade:
    """Sample pi(v) = q(v) [v in A] + p(v) (1 - q(A)) instead of p (Narasimhan et al. 2405.19261).

    A is the set of tokens on which the draft is trusted, by ``rule``; it grows with ``alpha``. With P and Q the
    unfiltered p and q, and TV the total variation distance of the filtered ones:

    - "chow": everything where max Q >= 1 - alpha, else nothing (equation 2)
    - "diff": everything where max Q >= max P - alpha (equation 5)
    - "opt": everything where max Q >= max P - alpha TV (equation 10)
    - "token_v1": the v with Q(v) >= max P - alpha (equation 13)
    - "token_v2": the v with P(v) >= max P - alpha (equation 14)
    - "token_v3": the v with P(v) >= (1 - alpha) max P (equation 15), which the authors recommend

    pi mixes filtered p and q. A rejected token is replaced by one from max(0, pi - q); after a fully accepted draft
    there is no q, and the next token is drawn from p. Raises ValueError for another rule, NaN alpha.
    """

    def __init__(self, rule: str = "token_v3", alpha: float = 0.3):
        if rule not in TRUSTED:
            raise ValueError(f"unknown cascade {rule!r}; the known ones are {', '.join(TRUSTED)}")
        if alpha != alpha:
            raise ValueError("alpha must be a number, not NaN")
        self.rule, self.alpha = rule, alpha

    def __call__(self, draft: DraftBlock) -> tuple[Tensor, Tensor]:
        p, q = draft.probabilities()
        return Exact().verify(draft, torch.cat([self._mix(draft, p[:, :-1], q), p[:, -1:]], 1), q)

    def _mix(self, draft: DraftBlock, p: Tensor, q: Tensor) -> Tensor:
        raw_p, raw_q = (log.exp() for log in draft.log_probabilities(filtered=False))
        distance = (p - q).abs().sum(-1, keepdim=True) / 2
        # After the end of a shorter draft there is no q.
        trusted = TRUSTED[self.rule](raw_p, raw_q, distance, self.alpha) & length_mask(q, draft.lengths)[..., None]
        # The sum over the complement: 1 - q(A) would round where A is almost everything.
        return q * trusted + p * (q * ~trusted).sum(-1, keepdim=True)


def _top(probabilities: Tensor) -> Tensor:
    return probabilities.amax(-1, keepdim=True)


TRUSTED: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "chow": lambda p, q, tv, alpha: _top(q) >= 1 - alpha,
    "diff": lambda p, q, tv, alpha: _top(q) >= _top(p) - alpha,
    "opt": lambda p, q, tv, alpha: _top(q) >= _top(p) - alpha * tv,
    "token_v1": lambda p, q, tv, alpha: q >= _top(p) - alpha,
    "token_v2": lambda p, q, tv, alpha: p >= _top(p) - alpha,
    "token_v3": lambda p, q, tv, alpha: p >= (1 - alpha) * _top(p),
}
"""A as a mask that broadcasts to [r, k, vocab], from P, Q, TV and alpha."""
