"""A policy's decisions on a GPU, from the tensors of a ``PolicyState``, in two launches (``decision_kernel``)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from policies.features.distribution import triton_kernels
from policies.features.fast_path import CODES, lines
from policies.features.table import FEATURES

LARGEST = 1024  # features times units of a layer, which one program holds


class DevicePolicy:
    """Takes a policy's decisions on a GPU. What it launches may be recorded, once ``keep`` has been called.

    It reads ``buffer.ids``, ``buffer.prompts``, ``checked``, ``agreed`` and ``large_entropy`` of ``state``, a decoder's
    ``PolicyState``, and writes its ``history``.
    """

    def __init__(self, policy, state):
        self.state, device = state, state.buffer.ids.device
        plans = [lines(names, policy.history) for names in (policy.names, policy.history)]
        self.moments = any((plan[:, 0] < CODES.index("position")).any() for plan in plans)
        self.repeated = "repeated" in policy.names
        self.plan = [torch.from_numpy(plan).to(device) for plan in plans]
        self.scaling = torch.stack([part.float() for part in policy.scaling()]).to(device)
        self.layers, self.squashed = policy.layers()
        self.threshold = policy.threshold
        self.nothing = torch.empty(len(state.buffer.ids), 1, 0, device=device)  # in place of a history
        self.classes = torch.empty(0, dtype=torch.uint8, device=device) if policy.classes is None else policy.classes

    def keep(self, keep: Callable[[str, Tensor], Tensor]) -> None:
        """Hold everything but the state in tensors that keep their addresses."""
        self.plan = [keep(f"plan {i}", plan) for i, plan in enumerate(self.plan)]
        self.layers = [keep(f"layer {i}", layer) for i, layer in enumerate(self.layers)]
        for name in ("scaling", "threshold", "classes", "nothing"):
            setattr(self, name, keep(name, getattr(self, name)))

    def __call__(self, logits: Tensor, rows: Tensor, lengths: Tensor, hidden: Tensor | None = None) -> Tensor:
        """bool [r]: the decisions on the token after the first ``lengths`` [r] tokens of ``rows`` [r].

        ``logits`` [r, vocab] of the model that would write it.
        """
        state, buffer = self.state, self.state.buffer
        return kernels().decide(
            list(triton_kernels().read_logits(logits)) if self.moments else [],
            rows,
            lengths,
            buffer.ids,
            buffer.prompts,
            [state.checked, state.agreed, state.large_entropy],
            self.nothing if state.history is None else state.history,
            state.needs.window,
            self.classes,
            self.plan,
            self.scaling,
            self.layers,
            self.threshold,
            self.repeated,
            self.squashed,
        )


def can_launch(policy, state) -> bool:
    """Whether ``state`` is on a GPU and the kernels take all of the decision."""
    if not on_gpu(state.buffer.ids) or (policy.needs_classes and policy.classes is None):
        return False
    if any(FEATURES[name].needs_target or name == "uniform" for name in policy.names) or not policy.names:
        return False
    layers = policy.layers()
    small = layers is not None and all(layer.numel() <= LARGEST for layer in layers[0])
    return small and kernels() is not None


def on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


@cache
def kernels() -> ModuleType | None:
    """``policies.features.decision_kernel``; None without Triton."""
    try:
        from policies.features import decision_kernel
    except ImportError as error:
        logging.getLogger(__name__).info("decisions are taken by torch operations: %s", error)
        return None
    return decision_kernel
