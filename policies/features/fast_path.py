"""A policy's features straight from the arrays of a ``PolicyState``, in one compiled call (``numba_kernels``)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from policies.features.table import FEATURES
from policies.features.token_classes import BITS


class CompiledPolicy:
    """Takes a policy's decisions on the CPU.

    ``trail`` is who keeps what a ``Step`` is made of: ``buffer.ids`` and ``buffer.prompts``, ``checked``, ``agreed``,
    ``large_entropy``, and ``history``, which is written here.
    """

    def __init__(self, policy, trail):
        self.policy, self.trail, self.columns = policy, trail, compiled().columns
        self.plan, self.watched = (_lines(names, policy.history) for names in (policy.names, policy.history))
        self.scaling = torch.stack([part.float() for part in policy.scaling()]).numpy()
        self.ids, self.prompts = trail.buffer.ids.numpy(), trail.buffer.prompts.numpy()
        batch, places = trail.buffer.ids.shape
        nothing = np.empty((batch, places + 1, 0), np.float32)
        self.history = nothing if trail.history is None else trail.history.numpy()
        self.classes = np.empty(0, np.uint8) if policy.classes is None else policy.classes.numpy()

    def __call__(self, logits: Tensor, rows: Tensor, lengths: Tensor, hidden: Tensor | None = None) -> Tensor:
        """bool [r]: the decisions on ``rows`` [r], about to write the token after ``lengths`` [r] tokens.

        ``logits`` [r, vocab] and, if need be, ``hidden`` [r, width] are of who would write it.
        """
        return self.policy.exceeds(self.policy._score(self.table(logits, rows, lengths), hidden))

    def table(self, logits: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
        """Float32 [r, features], scaled."""
        if logits.dtype != torch.float32:
            logits = logits.float()
        known = self.trail.checked, self.trail.agreed, self.trail.large_entropy
        now = (part.numpy() for part in (logits.contiguous(), rows, lengths))
        kept = self.ids, self.prompts, *(part.numpy() for part in known), self.history, self.classes
        return torch.from_numpy(self.columns(*now, self.plan, self.scaling, self.watched, *kept))


def _lines(names: Sequence[str], history: Sequence[str]) -> np.ndarray:
    """[n, 2] as ``numba_kernels.columns`` reads them."""
    lines = np.zeros((len(names), 2), np.int64)
    for i, name in enumerate(names):
        base = FEATURES[name].averages
        if base is not None:
            lines[i] = _code("mean"), history.index(base)
        elif name.startswith("last_is_"):
            lines[i] = _code("last_is"), BITS[name.removeprefix("last_is_")]
        else:
            lines[i] = _code(name), 0
    return lines


def _code(name: str) -> int:
    return compiled().CODES.index(name)


def can_compile(policy, trail) -> bool:
    """Whether all that ``policy`` reads is compiled, and here; noise and what the larger model says are not."""
    if not trail.buffer.ids.is_cpu or (policy.needs_classes and policy.classes is None):
        return False
    return not any(FEATURES[name].needs_target or name == "uniform" for name in policy.names) and compiled() is not None


@cache
def compiled() -> ModuleType | None:
    """``policies.features.numba_kernels``; None where numba is missing or has nowhere to keep what it compiles."""
    try:
        from policies.features import numba_kernels
    except (ImportError, RuntimeError) as error:
        logging.getLogger(__name__).info("decisions are taken by torch operations: %s", error)
        return None
    return numba_kernels
