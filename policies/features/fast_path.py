"""A policy's decisions straight from the arrays of a ``PolicyState``, in one compiled call (``numba_kernels``)."""

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

CODES = (
    *("entropy", "varentropy", "top1", "margin", "top10", "top10_mass"),
    *("position", "since_large", "repeated", "agreed", "large_entropy", "mean", "last_is"),
)
"""The features that a line of a plan may name, for the kernels of the CPU and of a GPU."""


class CompiledPolicy:
    """Takes a policy's decisions on the CPU, where nothing is recorded.

    It reads ``buffer.ids``, ``buffer.prompts``, ``checked``, ``agreed`` and ``large_entropy`` of ``state``, a decoder's
    ``PolicyState``, and writes its ``history``.
    """

    def __init__(self, policy, state):
        self.policy, self.state, self.columns = policy, state, kernels().columns
        self.plan, self.recorded = (lines(names, policy.history) for names in (policy.names, policy.history))
        self.scaling = torch.stack([part.float() for part in policy.scaling()]).numpy()
        self.ids, self.prompts = state.buffer.ids.numpy(), state.buffer.prompts.numpy()
        batch, places = self.ids.shape
        nothing = np.empty((batch, places + 1, 0), np.float32)
        self.history = nothing if state.history is None else state.history.numpy()
        self.classes = np.empty(0, np.uint8) if policy.classes is None else policy.classes.numpy()

    def __call__(self, logits: Tensor, rows: Tensor, lengths: Tensor, hidden: Tensor | None = None) -> Tensor:
        """bool [r]: the decisions on the token after the first ``lengths`` [r] tokens of ``rows`` [r].

        ``logits`` [r, vocab] and, if the policy needs them, hidden states [r, width] of the model that would write it.
        """
        return self.policy.exceeds(self.policy._score(self.table(logits, rows, lengths), hidden))

    def table(self, logits: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
        """Float32 [r, features], standardised."""
        known = self.state.checked, self.state.agreed, self.state.large_entropy
        now = (part.numpy() for part in (logits.float().contiguous(), rows, lengths))
        kept = self.ids, self.prompts, *(part.numpy() for part in known), self.history, self.classes
        return torch.from_numpy(self.columns(*now, self.plan, self.scaling, self.recorded, *kept))


def lines(names: Sequence[str], history: Sequence[str]) -> np.ndarray:
    """The plan [n, 2] of features ``names``: a place in ``CODES``, and a column of the history or bit of a class."""
    return np.array([_line(name, history) for name in names], np.int64).reshape(-1, 2)


def _line(name: str, history: Sequence[str]) -> tuple[int, int]:
    code, base = CODES.index, FEATURES[name].averages
    if base is not None:
        return code("mean"), history.index(base)
    if name.startswith("last_is_"):
        return code("last_is"), BITS[name.removeprefix("last_is_")]
    return code(name), 0


def can_compile(policy, state) -> bool:
    """Whether ``state`` is on the CPU and the kernels compute every feature that ``policy`` reads."""
    if not state.buffer.ids.is_cpu or (policy.needs_classes and policy.classes is None):
        return False
    return not any(FEATURES[name].needs_target or name == "uniform" for name in policy.names) and kernels() is not None


@cache
def kernels() -> ModuleType | None:
    """``policies.features.numba_kernels``; None if numba is missing or has no folder for what it compiles."""
    try:
        from policies.features import numba_kernels
    except (ImportError, RuntimeError) as error:
        logging.getLogger(__name__).info("decisions are taken by torch operations: %s", error)
        return None
    return numba_kernels
