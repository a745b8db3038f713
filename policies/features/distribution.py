"""Moments and largest probabilities of a distribution over the vocabulary, in few passes over it.

A decision is taken for every token of a model that may be tiny, so it must be cheap beside a forward, and its cost is
passes over [vocab] numbers. Exponentials are never normalised: each moment is divided by their sum.
"""

from __future__ import annotations

import logging
from functools import cache, cached_property
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

TOP = 10
CHUNK = 64  # logits per chunk, whose maximum is found first


def distribution(logits: Tensor) -> Distribution:
    """``Distribution``, or on CUDA, where Triton is there, what computes the same in two launches."""
    kernels = triton_kernels() if logits.is_cuda else None
    return Distribution(logits) if kernels is None else kernels.KernelDistribution(logits)


@cache
def triton_kernels() -> ModuleType | None:
    """``policies.features.triton_kernels``; None without Triton."""
    try:
        from policies.features import triton_kernels as kernels
    except ImportError as error:
        logging.getLogger(__name__).info("features are computed by torch operations: %s", error)
        return None
    return kernels


class Distribution:
    """The softmax of ``logits`` [..., vocab] of any float type, in float32. Each property is [...] unless it says so.

    Masked logits (-inf) are allowed; NaN makes every property NaN.
    """

    def __init__(self, logits: Tensor):
        self.vocab, self.logits = logits.shape[-1], logits.float()
        if missing := -self.vocab % CHUNK:  # pad copies even if nothing is missing
            self.logits = F.pad(self.logits, (0, missing), value=-torch.inf)

    @cached_property
    def _peaks(self) -> Tensor:
        """[..., chunks] the largest logit of each chunk."""
        return self.logits.unflatten(-1, (-1, CHUNK)).amax(dim=-1)

    @cached_property
    def _below(self) -> Tensor:
        """[..., chunks * CHUNK] logits minus their maximum, at least -200, where exp is 0 in float32: no 0 * -inf."""
        return (self.logits - self._peaks.amax(dim=-1, keepdim=True)).clamp_(min=-200.0)

    @cached_property
    def _sums(self) -> tuple[Tensor, Tensor]:
        """The sum of exp(below), and exp(below) * below [..., chunks * CHUNK]."""
        weights = self._below.exp()
        return weights.sum(dim=-1), weights.mul_(self._below)

    @cached_property
    def _mean(self) -> Tensor:
        """The mean of ``below``. Not a dot product: the order in which BLAS sums depends on memory alignment."""
        total, weighted = self._sums
        return weighted.sum(dim=-1) / total

    @property
    def top1(self) -> Tensor:
        return self._sums[0].reciprocal()

    @property
    def entropy(self) -> Tensor:
        """In nats."""
        return self._sums[0].log() - self._mean

    @cached_property
    def varentropy(self) -> Tensor:
        """Variance of -log p, in nats squared."""
        total, weighted = self._sums
        square = (weighted * self._below).sum(dim=-1) / total
        return (square - self._mean.square()).clamp(min=0.0)

    @cached_property
    def top(self) -> Tensor:
        """[..., 10] largest probabilities, descending; fewer in a smaller vocabulary.

        They lie in the ten chunks with the largest peaks; topk over the vocabulary takes a multiple of the time.
        """
        chunks = self._below.unflatten(-1, (-1, CHUNK))
        best = self._peaks.topk(min(TOP, chunks.shape[-2]), dim=-1).indices.unsqueeze(-1)
        found = chunks.gather(-2, best.expand(*best.shape[:-1], CHUNK)).flatten(-2)
        return found.topk(min(TOP, self.vocab), dim=-1).values.exp() / self._sums[0].unsqueeze(-1)

    @cached_property
    def top10_mass(self) -> Tensor:
        return self.top.sum(dim=-1)
