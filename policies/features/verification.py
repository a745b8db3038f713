"""Features of a drafted token that the larger model has read, for learned acceptance rules."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kl(view) -> Tensor:
    """KL(small || large) in nats: Backoff Decoding and fuzzy speculative decoding threshold it."""
    return _kl(view.log_probs, view.target_log_probs)


def js(view) -> Tensor:
    """Jensen-Shannon divergence in nats, at most log 2."""
    middle = torch.logaddexp(view.log_probs, view.target_log_probs) - math.log(2)
    return (_kl(view.log_probs, middle) + _kl(view.target_log_probs, middle)) / 2


def tv(view) -> Tensor:
    """Total variation distance, at most 1: the chance that exact verification rejects a drawn token."""
    return (view.log_probs.exp() - view.target_log_probs.exp()).abs().sum(dim=-1) / 2


def target_entropy(view) -> Tensor:
    """Entropy of the larger model in nats: where it is high, a mismatch is often another wording (FLy)."""
    return -(view.target_log_probs.exp() * view.target_log_probs).sum(dim=-1)


def target_surprise(view) -> Tensor:
    """-log p of the drafted token under the larger model: BiLD's rollback distance."""
    return -_at_token(view.target_log_probs, view)


def target_regret(view) -> Tensor:
    """The larger model's best log-probability minus that of the drafted token."""
    return view.target_log_probs.amax(dim=-1) + target_surprise(view)


def log_ratio(view) -> Tensor:
    """log(q / p) of the drafted token, q the smaller model's probability: above 0, exact verification may reject it."""
    return _at_token(view.log_probs, view) + target_surprise(view)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(dim=-1)


def _at_token(log_probs: Tensor, view) -> Tensor:
    return log_probs.gather(-1, view.step.token.unsqueeze(-1)).squeeze(-1)


VERIFICATION = {f.__name__: f for f in (kl, js, tv, target_entropy, target_surprise, target_regret, log_ratio)}
