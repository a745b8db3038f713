"""Whole steps of a decoder in one CUDA graph: the forward, the decision, the draw, the commit and what the host hears.

A step is recorded as it runs. All that it reads and writes must be in tensors that keep their addresses, from one step
to the next and from one generation to the next: ``keep`` gives a generation's tensors such places.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

LOG = logging.getLogger(__name__)
"""At ``INFO``: the time of each recording."""


@dataclass(slots=True)
class RecordingCost:
    """The number of recordings of one model so far, and the seconds that they took."""

    count: int = 0
    seconds: float = 0.0

    def add(self, what: str, began: float) -> None:
        """Account for the recording of ``what`` that ``began`` at that time."""
        seconds = time.perf_counter() - began
        self.count, self.seconds = self.count + 1, self.seconds + seconds
        LOG.info("recorded %s in %.0f ms", what, 1e3 * seconds)


class RecordedSteps:
    """The recorded steps over one cache, and the tensors that they read. ``record`` makes a ``CudaGraph``."""

    def __init__(self, record: Callable, cost: RecordingCost):
        self.record, self.cost = record, cost
        self.places: dict[Hashable, Tensor] = {}
        self.policies: dict[Hashable, torch.nn.Module] = {}
        self.graphs: dict[Hashable, object] = {}
        self.used: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Another generation has the cache."""
        self.used = {}

    def keep(self, name: str, value: Tensor) -> Tensor:
        """A tensor with the values of ``value``, in the place of the last one of that name, shape and dtype."""
        key = name, value.shape, value.dtype
        with torch.inference_mode(False):  # it outlives the generation
            if key not in self.places:
                self.places[key] = torch.empty_like(value)
        self.used[name] = self.places[key].copy_(value)
        return self.used[name]

    def keep_policy(self, name: str, policy: torch.nn.Module, shape: Hashable) -> torch.nn.Module:
        """A policy of this ``shape`` with the numbers of ``policy``, in the place of the last one of that shape."""
        key = name, shape
        with torch.inference_mode(False):
            if key not in self.policies:
                self.policies[key] = copy.deepcopy(policy)
        kept = self.policies[key]
        for place, value in zip(kept.buffers(), policy.buffers(), strict=True):
            place.copy_(value)
        return kept

    def run(self, key: Hashable, step: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The outputs of ``step``, replayed; the next replay overwrites them.

        ``key`` tells apart whatever Python decides in ``step``. RuntimeError where it cannot be recorded.
        """
        key = key, tuple(map(id, self.used.values()))
        if key not in self.graphs:
            self.graphs[key] = self._record(step)
        graph = self.graphs[key]
        graph.replay()
        return graph.outputs

    def _record(self, step: Callable[[], tuple[Tensor, ...]]) -> object:
        before = {name: tensor.clone() for name, tensor in self.used.items()}
        began = time.perf_counter()
        try:
            graph = self.record(step)
        finally:  # the runs that warm up have written tokens
            for name, value in before.items():
                self.used[name].copy_(value)
        self.cost.add("a step", began)
        return graph
