"""What features need of a distribution over the vocabulary, in as few passes over it as can be.

A decision is taken for every token of a model that may be tiny, so it must cost little beside a forward of it; and
what costs are passes over [vocab] numbers. Exponentials are of the logits minus their maximum and are never normalised:
every moment is divided by their sum, and the ten largest are sought where they can be.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

TOP = 10
CHUNK = 64
"""Neighbours of which the largest is found first: the ten largest of all are in the ten chunks of the largest."""


class Distribution:
    """softmax of ``logits`` [..., vocab], any float type, in float32. Each number is [...] unless said otherwise.

    Masked logits (-inf) are fine; NaN makes everything NaN.
    """

    def __init__(self, logits: Tensor):
        self.logits = logits

    @cached_property
    def below(self) -> Tensor:
        """[..., vocab] logits minus their maximum, floored at -200, where exp is 0 in float32: no 0 * -inf in a sum."""
        logits = self.logits.float()
        return (logits - logits.amax(dim=-1, keepdim=True)).clamp_(min=-200.0)

    @cached_property
    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """The sum of exp(below); its mean of ``below`` and of the square of that."""
        weights = self.below.exp()
        total = weights.sum(dim=-1)
        weights *= self.below
        return total, weights.sum(dim=-1) / total, torch.linalg.vecdot(weights, self.below) / total

    @property
    def top1(self) -> Tensor:
        return self._sums[0].reciprocal()

    @cached_property
    def entropy(self) -> Tensor:
        """In nats."""
        total, mean, _ = self._sums
        return total.log() - mean

    @cached_property
    def varentropy(self) -> Tensor:
        """Variance of -log p, in nats squared."""
        _, mean, square = self._sums
        return (square - mean.square()).clamp(min=0.0)

    @cached_property
    def top(self) -> Tensor:
        """[..., 10] largest probabilities, descending; fewer in a smaller vocabulary."""
        return _largest(self.below).exp() / self._sums[0].unsqueeze(-1)

    @cached_property
    def top10_mass(self) -> Tensor:
        return self.top.sum(dim=-1)


def _largest(values: Tensor) -> Tensor:
    """The ``TOP`` largest of ``values`` [..., n], descending, as topk finds them in a multiple of the time."""
    whole = values.shape[-1] // CHUNK
    if whole > TOP:
        chunks = values[..., : whole * CHUNK].unflatten(-1, (whole, CHUNK))
        best = chunks.amax(dim=-1).topk(TOP, dim=-1).indices.unsqueeze(-1)
        found = chunks.gather(-2, best.expand(*best.shape[:-1], CHUNK)).flatten(-2)
        rest = values[..., whole * CHUNK :]
        values = torch.cat([found, rest], dim=-1) if rest.shape[-1] else found
    return values.topk(min(TOP, values.shape[-1]), dim=-1).values
