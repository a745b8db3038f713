"""CUDA graphs: forwards of few tokens are recorded once, and replayed without the host's work for each operation.

A graph reads and writes fixed addresses. So its inputs have buffers of their own, and it belongs to one cache: caches
are kept when their session is over and lent to the next one of their size. Rolling back stays a smaller position.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from decoding.kernels.fused_forward import versions
from decoding.kv_cache.attention import AttentionPositions

QUERIES = (1, 2, 3, 4, 5, 6, 8, 12, 16)
"""Tokens read at once of which there are graphs; what lies between is padded, and what is longer runs eagerly."""
KEYS = 128
"""Graphs read the cache up to a multiple of this; so many tokens apart is the next one recorded."""
CAPACITY = 256
"""Caches are rounded up to a multiple of this, so that few sizes are kept."""
IDLE = 4
"""Caches of one model that are kept unused."""

LOG = logging.getLogger(__name__)
"""Says at ``INFO`` what each recording took; it is made once for each size and cache, and kept with the cache."""

Outputs = tuple[Tensor, Tensor | None]
Forward = Callable[[Tensor, int, bool], Outputs]
"""(ids [r, q], logits_to_keep, hidden) to logits and hidden states of what the cache's plan says."""


class CudaGraph:
    """All that needs a GPU: record ``run`` once, replay it as often as asked. ``outputs`` are overwritten by that."""

    def __init__(self, run: Callable[[], Outputs]):
        warm = torch.cuda.Stream()
        warm.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm):  # libraries allocate at their first calls, which cannot be recorded
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(warm)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = run()

    def replay(self) -> None:
        self.graph.replay()


@dataclass(slots=True)
class Inputs:
    """What a recorded forward reads besides weights and cache."""

    ids: Tensor
    positions: Tensor
    slots: Tensor
    rows: Tensor | None

    def fill(self, ids: Tensor, positions: Tensor, slots: Tensor, rows: Tensor | None, capacity: int) -> None:
        """Right-aligned; what stood on the left before is read again, and written to the last slot of its row."""
        pad = self.ids.shape[1] - ids.shape[1]
        self.ids[:, pad:], self.positions[:, pad:] = ids, positions
        stored = self.slots.view(self.ids.shape)
        stored[:, pad:] = slots.view(ids.shape)
        if self.rows is not None:
            self.rows.copy_(rows)
        if pad:
            these = torch.arange(len(ids), device=ids.device) if rows is None else rows
            stored[:, :pad] = these[:, None] * (capacity + 1) + capacity


@dataclass(slots=True)
class Recorder:
    """The graphs of one cache. ``cache`` is a ``session.SlotCache``, whose plan a recording writes to."""

    cache: object
    batch: int
    capacity: int
    weights: list
    """``lean.versions`` of the model when it was made"""
    graphs: dict[tuple, tuple[Inputs, CudaGraph]] = field(default_factory=dict)
    broken: bool = False

    def run(self, forward: Forward, ids: Tensor, logits_to_keep: int, hidden: bool) -> Outputs | None:
        """What ``forward`` returns for the cache's plan, from a graph; None where there can be none."""
        plan, (r, q) = self.cache.plan, ids.shape
        if self.broken or q > QUERIES[-1] or plan.positions.keys is not None:
            return None
        wanted = plan.positions, plan.slots, plan.rows, plan.reach
        reach = min(-(-plan.reach // KEYS) * KEYS, self.capacity)
        key = r, QUERIES[bisect_left(QUERIES, q)], reach, logits_to_keep, hidden
        inputs = self.graphs[key][0] if key in self.graphs else self._inputs(r, key[1], ids.device)
        inputs.fill(ids, plan.positions.queries, plan.slots, plan.rows, self.capacity)
        try:
            if key not in self.graphs:
                self.graphs[key] = inputs, self._record(forward, inputs, reach, logits_to_keep, hidden)
            graph = self.graphs[key][1]
            graph.replay()
        except RuntimeError as error:
            self.broken = True
            reason = str(error).splitlines()[0]
            LOG.warning("no CUDA graphs, forwards run eagerly: %s", reason)
            return None
        finally:
            plan.positions, plan.slots, plan.rows, plan.reach, plan.rounded = *wanted, False
        logits, states = graph.outputs
        return logits.clone(), None if states is None else states.clone()

    def _inputs(self, r: int, q: int, device: torch.device) -> Inputs:
        zeros = lambda *shape: torch.zeros(shape, dtype=torch.long, device=device)  # noqa: E731
        with torch.inference_mode(False):  # or they could not be filled outside of it
            return Inputs(zeros(r, q), zeros(r, q), zeros(r * q), None if r == self.batch else zeros(r))

    def _record(self, forward: Forward, inputs: Inputs, reach: int, logits_to_keep: int, hidden: bool) -> CudaGraph:
        plan = self.cache.plan

        def run() -> Outputs:
            plan.positions, plan.slots, plan.rows = AttentionPositions(inputs.positions), inputs.slots, inputs.rows
            plan.reach, plan.rounded = reach, True
            return forward(inputs.ids, logits_to_keep, hidden)

        began = time.perf_counter()
        graph = CudaGraph(run)
        size = f"{len(inputs.ids)} rows, {inputs.ids.shape[1]} tokens, {reach} slots"
        LOG.info("recorded a forward of %s in %.0f ms", size, 1e3 * (time.perf_counter() - began))
        return graph


def rounded(capacity: int) -> int:
    """How many tokens a cache holds that is asked to hold ``capacity``."""
    return -(-capacity // CAPACITY) * CAPACITY


def recordable(model) -> bool:
    """Whether all weights are on one CUDA device."""
    return {p.device.type for p in model.parameters()} == {"cuda"} and len({p.device for p in model.parameters()}) == 1


class Recorders:
    """The caches of one model that no session uses, each with its graphs."""

    def __init__(self, model):
        self.model, self.weights, self.free, self.broken = model, None, [], False

    def lend(self, batch: int, capacity: int, make: Callable[[int], object]) -> Recorder | None:
        """A recorder for ``batch`` rows of at least ``capacity`` tokens; None once recording has failed.

        ``make(capacity)`` is a new cache.
        """
        weights = versions(self.model)
        if weights != self.weights:  # graphs would read what is no longer there
            self.weights, self.free, self.broken = weights, [], False
        if self.broken:
            return None
        capacity = rounded(capacity)
        for recorder in self.free:
            if (recorder.batch, recorder.capacity) == (batch, capacity):
                self.free.remove(recorder)
                return recorder
        return Recorder(make(capacity), batch, capacity, weights)

    def take_back(self, recorder: Recorder) -> None:
        """Keep the recorder of a session that is over, unless there are enough or the weights are others now."""
        if recorder.weights == self.weights:
            self.broken = self.broken or recorder.broken
            self.free = [*self.free, recorder][-IDLE:]
