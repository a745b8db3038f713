"""Temperature, top-k, top-p and min-p, and noise that depends only on seed, row and position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DRAW, ACCEPT, REPLACE, POLICY = range(4)
"""Streams of noise: to draw a token, to accept a draft, to draw the token after a draft, and from here on policies."""
COLDEST, GREATEST = 1e-6, 1e6
"""The least temperature above 0 and the greatest penalty: far beyond them logits in float32 are infinite, then NaN."""


@dataclass(frozen=True)
class Sampling:
    """Draws tokens from logits, filtered in transformers' order: temperature, top-k, top-p, min-p.

    ``temperature=0`` is greedy; ``min_p`` is the least probability kept, as a share of the greatest. The penalties are
    OpenAI's, also of greedy text: a token's logit loses ``frequency_penalty`` for every time that the answer, without
    its prompt, has the token, and ``presence_penalty`` once. Raises ValueError unless the temperature is 0 or in
    [``COLDEST``, inf), top_k is an int >= 1, 0 < top_p <= 1, 0 <= min_p <= 1, and no penalty exceeds ``GREATEST``.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not COLDEST <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0, or at least {COLDEST:g} and finite, not {self.temperature}")
        if self.top_k is not None and not (isinstance(self.top_k, int) and self.top_k >= 1):
            raise ValueError(f"top_k must be a whole number of at least 1 or None, not {self.top_k!r}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1] or None, not {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1] or None, not {self.min_p}")
        for name in ("frequency_penalty", "presence_penalty"):
            if not abs(getattr(self, name)) <= GREATEST:
                raise ValueError(f"{name} must be from {-GREATEST:g} to {GREATEST:g}, not {getattr(self, name)}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalises(self) -> bool:
        """Whether logits change with the answer, which ``state.text_processors`` sees to, not ``probabilities``."""
        return self.frequency_penalty != 0 or self.presence_penalty != 0

    def probabilities(self, logits: Tensor) -> Tensor:
        """[..., vocab] float32 probabilities after temperature and filters; one-hot when greedy."""
        if self.greedy:
            return torch.zeros_like(logits, dtype=torch.float32).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        logits = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        probabilities = logits.softmax(-1)
        if self.top_p is not None and self.top_p < 1:
            probabilities = self._nucleus(probabilities)
        if self.min_p is not None:
            least = self.min_p * probabilities.amax(-1, keepdim=True)
            probabilities = probabilities.masked_fill(probabilities < least, 0.0)
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        return probabilities

    def _nucleus(self, probabilities: Tensor) -> Tensor:
        """Keep the fewest most likely tokens whose mass reaches ``top_p``; after a top-k only its tokens are sorted."""
        few = self.top_k if self.top_k is not None else probabilities.shape[-1]
        ranked, where = probabilities.topk(min(few, probabilities.shape[-1]))
        kept = ranked.masked_fill(ranked.cumsum(-1) - ranked >= self.top_p, 0.0)
        kept = torch.zeros_like(probabilities).scatter_(-1, where, kept)
        return kept / kept.sum(-1, keepdim=True)

    def draw(self, logits: Tensor, uniform: Tensor | None) -> Tensor:
        """[...] token ids from ``logits`` [..., vocab], drawn at the quantile ``uniform`` [...], unused if greedy."""
        return logits.argmax(-1) if self.greedy else sample_from_weights(self.probabilities(logits), uniform)


def sample_from_weights(weights: Tensor, uniform: Tensor) -> Tensor:
    """[...] the first token whose cumulative weight exceeds ``uniform`` times the total; weights need not sum to 1."""
    cumulative = weights.cumsum(-1)
    token = torch.searchsorted(cumulative, (uniform * cumulative[..., -1]).unsqueeze(-1), right=True)
    return token.squeeze(-1).clamp_(max=weights.shape[-1] - 1)


def counter_noise(seeds: Tensor, positions: Tensor, stream: int) -> Tensor:
    """Uniform [0, 1) float32, splitmix64 of the counter (seed, position, stream), the same on every device.

    Multiplication wraps around; arithmetic shifts are masked into logical ones. Only 23 bits are used, so that
    ``u * total`` cannot round up to ``total``.
    """
    x = seeds * -7046029254386353131 + positions * -4417276706812531889 + (stream + 1) * 1609587929392839161
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    x = x ^ ((x >> 31) & 0x1FFFFFFFF)
    return ((x >> 41) & 0x7FFFFF).float() * 2.0**-23
