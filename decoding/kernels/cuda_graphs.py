"""CUDA graphs: forwards of few tokens are recorded once, and replayed without the host launching each operation.

A graph reads and writes fixed addresses. So it has input buffers of its own and belongs to one cache; the cache of a
finished session is kept and lent to the next session of its size. A rollback still only lowers a position.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from decoding.kernels.fused_forward import versions
from decoding.kernels.recorded_steps import RecordedSteps, RecordingCost
from decoding.kv_cache.attention import AttentionPositions

QUERIES = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
"""Numbers of tokens for which graphs are recorded; others are padded to the next, longer ones run eagerly."""
KEYS = 128  # graphs read the cache up to a multiple of this, so a growing text needs a new graph every so many tokens
CAPACITY = 256  # cache sizes are rounded up to a multiple of this, so that there are few
IDLE = 4  # most unused caches of one model that are kept

LOG = logging.getLogger(__name__)

Outputs = tuple[Tensor, Tensor | None]
Forward = Callable[[Tensor, int, bool], Outputs]
"""(ids [r, q], logits_to_keep, hidden) to logits and hidden states, by the cache's plan."""


class CudaGraph:
    """Records ``run`` once and replays it, each time into the same ``outputs``. The only code that needs a GPU."""

    def __init__(self, run: Callable[[], Outputs]):
        warm = torch.cuda.Stream()
        warm.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm):  # libraries allocate in their first calls, which cannot be recorded
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(warm)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=shared_pool()):
            self.outputs = run()

    def replay(self) -> None:
        self.graph.replay()


@cache
def shared_pool() -> tuple[int, int]:
    """The memory of all recordings: they are replayed one after the other, so each may use what another one left."""
    return torch.cuda.graph_pool_handle()


@dataclass(slots=True)
class Inputs:
    """The buffers that a recorded forward reads besides weights and cache."""

    ids: Tensor
    positions: Tensor
    slots: Tensor
    rows: Tensor | None

    def fill(self, ids: Tensor, positions: Tensor, slots: Tensor, rows: Tensor | None, capacity: int) -> None:
        """Fill right-aligned; old values on the left are padding, stored in the last slot of their row."""
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
    """The graphs of one cache. ``cache`` is a ``session.SlotCache``; a recording writes to its plan."""

    cache: object
    batch: int
    capacity: int
    weights: list  # ``fused_forward.versions`` of the model when it was made
    cost: RecordingCost
    graphs: dict[tuple, tuple[Inputs, CudaGraph]] = field(default_factory=dict)
    broken: bool = False
    recording: bool = False  # whether a step is being recorded of which the forward is a part
    steps: RecordedSteps = field(init=False)

    def __post_init__(self) -> None:
        self.steps = RecordedSteps(lambda run: CudaGraph(run), self.cost)

    def run(self, forward: Forward, ids: Tensor, logits_to_keep: int, hidden: bool) -> Outputs | None:
        """The outputs of ``forward`` for the cache's plan, from a graph; None where it cannot be recorded."""
        plan, (r, q) = self.cache.plan, ids.shape
        if self.broken or self.recording or q > QUERIES[-1] or plan.positions.keys is not None:
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
            self.fail(error)
            return None
        finally:
            plan.positions, plan.slots, plan.rows, plan.reach, plan.rounded = *wanted, False
        logits, states = graph.outputs
        return logits.clone(), None if states is None else states.clone()

    def fail(self, error: RuntimeError) -> None:
        """Record nothing more."""
        self.broken = True
        LOG.warning("no CUDA graphs, forwards run eagerly: %s", str(error).splitlines()[0])

    def _inputs(self, r: int, q: int, device: torch.device) -> Inputs:
        zeros = lambda *shape: torch.zeros(shape, dtype=torch.long, device=device)  # noqa: E731
        with torch.inference_mode(False):  # so that they can be filled outside of it too
            return Inputs(zeros(r, q), zeros(r, q), zeros(r * q), None if r == self.batch else zeros(r))

    def _record(self, forward: Forward, inputs: Inputs, reach: int, logits_to_keep: int, hidden: bool) -> CudaGraph:
        plan = self.cache.plan

        def run() -> Outputs:
            plan.positions, plan.slots, plan.rows = AttentionPositions(inputs.positions), inputs.slots, inputs.rows
            plan.reach, plan.rounded = reach, True
            return forward(inputs.ids, logits_to_keep, hidden)

        began = time.perf_counter()
        graph = CudaGraph(run)
        self.cost.add(f"a forward of {len(inputs.ids)} rows, {inputs.ids.shape[1]} tokens, {reach} slots", began)
        return graph


def rounded(capacity: int) -> int:
    """The size of a cache for ``capacity`` tokens."""
    return -(-capacity // CAPACITY) * CAPACITY


def recordable(model) -> bool:
    """Whether all weights are on one CUDA device."""
    devices = {p.device for p in model.parameters()}
    return len(devices) == 1 and devices.pop().type == "cuda"


class Recorders:
    """The unused caches of one model, each with its graphs."""

    def __init__(self, model):
        self.model, self.weights, self.free, self.broken = model, None, [], False
        self.cost = RecordingCost()

    def lend(self, batch: int, capacity: int, make: Callable[[int], object]) -> Recorder | None:
        """A recorder for ``batch`` rows of at least ``capacity`` tokens; None after recording has failed.

        ``make(capacity)`` returns a new cache.
        """
        weights = versions(self.model)
        if weights != self.weights:  # graphs would read freed or old weights
            self.weights, self.free, self.broken = weights, [], False
        if self.broken:
            return None
        capacity = rounded(capacity)
        for recorder in self.free:
            if (recorder.batch, recorder.capacity) == (batch, capacity):
                self.free.remove(recorder)
                return recorder
        return Recorder(make(capacity), batch, capacity, weights, self.cost)

    def take_back(self, recorder: Recorder) -> None:
        """Keep the recorder of a finished session, and the ``IDLE`` latest in all, unless the weights have changed."""
        if recorder.weights == self.weights:
            self.broken = self.broken or recorder.broken
            self.free = [*self.free, recorder][-IDLE:]
