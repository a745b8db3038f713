"""Lossy acceptance rules: they accept more than speculative sampling, and change the output distribution.

All but ``Joint`` accept the leading drafted tokens that pass a test. All but ``Lenient`` draw the next token from the
target's filtered distribution p.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from decoding.acceptance.draft_block import DraftBlock, last_true
from decoding.acceptance.lossless import Exact


class Lenient:
    """Keep x with probability min(1, p(x) / (l q(x))), l the ``lenience`` (Leviathan et al. 2211.17192, appendix A.5).

    No token becomes more than 1 / l times as likely as under p; l = 1 is ``Exact``. p and q are filtered; after a
    rejection the next token is drawn from max(0, p - q). Greedy keeps x where p(x) >= l max p, unfiltered.
    Raises ValueError unless 0 < lenience <= 1.
    """

    def __init__(self, lenience: float = 0.5):
        if not 0 < lenience <= 1:
            raise ValueError(f"lenience must be in (0, 1], not {lenience}")
        self.lenience = lenience

    def __call__(self, draft: DraftBlock) -> tuple[Tensor, Tensor]:
        if draft.sampling.greedy:
            logits = draft.target_logits[:, :-1].float()
            kept = draft.of_drafted(logits) >= logits.amax(-1) + math.log(self.lenience)
            return draft.accept(kept)
        p, q = draft.probabilities()
        kept = draft.accept_noise * self.lenience * draft.of_drafted(q) < draft.of_drafted(p)
        return Exact().resample_after(draft, p, q, kept)


class Typical:
    """Keep x where p(x) > min(epsilon, delta exp(-H(p))), H in nats (Cai et al. 2401.10774, section 2.3.1; Medusa).

    p is filtered, so a token outside the target's filter is never kept; greedy keeps the target's best.
    Raises ValueError unless 0 <= epsilon < 1 and delta >= 0.
    """

    def __init__(self, epsilon: float = 0.09, delta: float = 0.3):
        if not (0 <= epsilon < 1 and delta >= 0):
            raise ValueError(f"typical acceptance needs 0 <= epsilon < 1 and delta >= 0, not {epsilon} and {delta}")
        self.epsilon, self.delta = epsilon, delta

    def __call__(self, draft: DraftBlock) -> tuple[Tensor, Tensor]:
        p = draft.sampling.probabilities(draft.target_logits[:, :-1])
        entropy = torch.special.entr(p).sum(-1)
        bar = (self.delta * (-entropy).exp()).clamp(max=self.epsilon)
        return draft.accept(draft.of_drafted(p) > bar)


class Rollback:
    """Keep x where -log p(x) <= threshold, or where x is the target's best (BiLD's rollback, Kim et al. 2302.07863).

    p is unfiltered and q is not read: the test is on the absolute probability exp(-threshold).
    Raises ValueError for a negative threshold.
    """

    def __init__(self, threshold: float = 5.0):
        if not threshold >= 0:
            raise ValueError(f"a rollback threshold must be at least 0 nats, not {threshold}")
        self.threshold = threshold

    def __call__(self, draft: DraftBlock) -> tuple[Tensor, Tensor]:
        log_p = draft.target_logits.float().log_softmax(-1)
        return draft.accept((-draft.of_drafted(log_p) <= self.threshold) | draft.is_best())


class Divergence:
    """Keep a position where the divergence of p and q is at most ``threshold``, whatever token was drawn.

    Fuzzy speculative decoding (Holsman et al. 2502.20704): it rejects where Backoff Decoding would escalate. ``kind``:
    "kl", KL(q || p), or "reverse_kl", in nats; "js", the Jensen-Shannon divergence, at most log 2 (the authors' code
    swaps its arguments, so their thresholds differ from ours); "tv", the total variation distance, at most 1. p and q
    are unfiltered unless ``filtered``: then the KL is infinite where the draft can draw a token that the target cannot.
    KL(p || q) is infinite wherever the draft lacks a token, so ``Speculative`` refuses "reverse_kl" with such a draft.
    Raises ValueError for another kind or a negative threshold.
    """

    def __init__(self, kind: str = "kl", threshold: float = 0.95, filtered: bool = False):
        if kind not in DIVERGENCES:
            raise ValueError(f"unknown divergence {kind!r}; the known ones are {', '.join(DIVERGENCES)}")
        if not threshold >= 0:
            raise ValueError(f"a divergence threshold must be at least 0, not {threshold}")
        self.kind, self.threshold, self.filtered = kind, threshold, filtered

    @property
    def needs_every_token(self) -> bool:
        """Whether it means something only where the draft gives every token of the target a probability."""
        return self.kind == "reverse_kl"

    def __call__(self, draft: DraftBlock) -> tuple[Tensor, Tensor]:
        return draft.accept(DIVERGENCES[self.kind](*draft.log_probabilities(self.filtered)) <= self.threshold)


class Joint:
    """Keep the longest prefix with log P - log Q > log tau, P and Q the products of p and q over it.

    The test of multi-token assisted decoding (Qin et al. 2407.09722; ``MTAD``). Every prefix is tested, so a good token
    can outweigh a bad one before it, unless p is 0 there: a token outside the target's filter rejects all longer
    prefixes. ``filtered=False`` compares softmaxes, which are never 0, also when greedy. The test is strict: p = q
    passes only if tau < 1. tau = 0 keeps everything of positive p, tau = inf nothing. ValueError unless tau >= 0.
    """

    def __init__(self, tau: float = 0.5, filtered: bool = True):
        if not tau >= 0:
            raise ValueError(f"tau must be at least 0, not {tau}")
        self.tau, self.filtered = tau, filtered

    def __call__(self, draft: DraftBlock) -> tuple[Tensor, Tensor]:
        accepted = last_true(self.passes(draft.log_ratio(self.filtered).cumsum(1)), draft.lengths)
        return accepted, draft.target_token(accepted)

    def passes(self, log_ratio: Tensor) -> Tensor:
        """Whether log P - log Q is large enough."""
        return log_ratio > (math.log(self.tau) if self.tau > 0 else -math.inf)


class FixedRatio:
    """Keep x where p(x) / q(x) > tau: ``Exact`` with a constant in place of its noise.

    The control for ``Joint``: an effect that both have is not due to testing tokens jointly. ``filtered`` as there.
    Raises ValueError unless tau > 0.
    """

    def __init__(self, tau: float = 0.5, filtered: bool = True):
        if not tau > 0:
            raise ValueError(f"tau must be positive, not {tau}")
        self.tau, self.filtered = tau, filtered

    def __call__(self, draft: DraftBlock) -> tuple[Tensor, Tensor]:
        return draft.accept(draft.log_ratio(self.filtered) > math.log(self.tau))


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    a = log_a.exp()
    return torch.where(a > 0, a * (log_a - log_b), 0.0).sum(-1)


def _js(log_p: Tensor, log_q: Tensor) -> Tensor:
    middle = torch.logaddexp(log_p, log_q) - math.log(2)
    return (_kl(log_p, middle) + _kl(log_q, middle)) / 2


def _tv(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": lambda log_p, log_q: _kl(log_q, log_p),
    "reverse_kl": _kl,
    "js": _js,
    "tv": _tv,
}
"""[...] from log p and log q [..., vocab]."""
