"""Steps of a decoder's first model: recorded whole where that can be done, and run eagerly elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from decoding.kernels.cuda_graphs import KEYS
from decoding.state.generation_state import GenerationState
from decoding.state.policy_state import PolicyState

Step = Callable[[], tuple[Tensor, ...]]


class StepRunner:
    """Runs steps that read the first session, the buffer and ``policy_state``, and no other tensors but kept ones.

    Recorded are those of one CUDA device's graphs, with a policy that knows what it reads, without text processors.
    """

    def __init__(self, state: GenerationState, policy_state: PolicyState | None = None):
        self.buffer, self.session = state.buffer, state.sessions[0]
        session, recorder = self.session, self.session.recorder
        shape = None if policy_state is None else policy_state.needs.recording
        known = session.shared is None and state.processors is None and (policy_state is None or shape is not None)
        self.steps = recorder.steps if recorder is not None and not recorder.broken and known else None
        self.what = shape, state.sampling
        if self.steps is not None:
            self.steps.begin()
        self.greatest = self.keep("greatest", torch.cat([other.greatest for other in state.sessions]))
        """[models] of which the sessions have their parts"""
        for i, other in enumerate(state.sessions):
            other.greatest = self.greatest[i : i + 1]
        if self.steps is None:
            return
        self.buffer.keep(self.steps.keep, session.capacity)
        session.read, session.begins = self.keep("read", session.read), self.keep("begins", session.begins)
        if policy_state is not None:
            policy_state.keep(self.steps)

    def keep(self, name: str, value: Tensor) -> Tensor:
        """``value`` where recorded steps find it."""
        return value if self.steps is None else self.steps.keep(name, value)

    def reach(self, reach: int) -> int:
        """At least ``reach`` slots for the first model to read, one of few numbers; at most all there are."""
        if self.steps is None:
            return min(reach, self.buffer.capacity)
        return min(-(-reach // KEYS) * KEYS, self.session.capacity)

    def run(self, key: Hashable, tokens: int, step: Step) -> tuple[Tensor, ...]:
        """The outputs of ``step``, in which the first model reads ``tokens``; the next run may overwrite them.

        ``key`` tells apart whatever Python decides in it, but for the policy's and the sampling's part.
        """
        if self.steps is not None:
            reads, self.session.reads, self.session.recorder.recording = self.session.reads, [], True
            try:
                out = self.steps.run((self.what, key), lambda: self._reaching_far(step))
                reads.append(tokens)
                return out
            except RuntimeError as error:
                self.session.recorder.fail(error)
                self.steps = None
            finally:
                self.session.reads, self.session.recorder.recording = reads, False
        return self._reaching_far(step)

    def _reaching_far(self, step: Step) -> tuple[Tensor, ...]:
        """Run a step whose model reads more slots than the longest text has."""
        self.session.plan.rounded = True
        try:
            return step()
        finally:
            self.session.plan.rounded = False
