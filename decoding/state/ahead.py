"""One token after the other without the host waiting: it hears of a step while the device computes the next one.

The device commits what a step has drawn, unless the step escalates it; such a row stays where it is, and the next step,
which the host launched before it heard, computes the same again: that step is wasted for this row, and so is one after
its end. Nothing has to be rolled back. Where all of a step can be recorded it is one launch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from decoding.kv_cache.session import ReadSpan
from decoding.state.generation_state import GenerationState
from decoding.state.host_reads import LateRead, send
from decoding.state.policy_state import PolicyState
from decoding.state.step_runner import StepRunner
from decoding.state.token_buffer import Heard


@dataclass(slots=True)
class Launched:
    """A step that the device has begun: the rows that it is for, what the host will hear, the best tokens [r].

    ``begun``: lengths and limits of the rows that have begun another text since, of which the step tells nothing.
    """

    order: list[int]
    read: LateRead
    best: Tensor
    begun: dict[int, tuple[int, int]] = field(default_factory=dict)


class AheadSteps:
    """Steps of the first model: launched by ``launch``, heard of by ``heard``."""

    def __init__(self, state: GenerationState, policy_state: PolicyState | None = None, verify_eos: bool = False):
        self.state, self.policy_state, self.verify_eos = state, policy_state, verify_eos
        state.buffer.end_closed()
        self.runner = StepRunner(state, policy_state)
        self.order: list[int] = []  # of which ``rows`` are the rows
        self.restarted: list[int] = []
        state.buffer.on_restart.append(self.restarted.append)

    def launch(self, order: list[int]) -> Launched:
        """Begin a step of the rows ``order``, ascending."""
        buffer, runner = self.state.buffer, self.runner
        if order != self.order:
            rows = buffer.every if len(order) == len(buffer.every) else send(order, buffer.device)
            self.order, self.rows = order, runner.keep("rows", rows)
        rows = self.rows
        # Since it heard of a length, the host has launched a step.
        reach = runner.reach(buffer.longest + 2)
        key = "ahead", self.verify_eos, len(order), reach
        said, best = runner.run(key, len(order), lambda: self._step(rows, reach))
        return Launched(order, LateRead(said), best)

    def heard(self, launched: Launched) -> Heard:
        """What a step has done, without waiting for the steps after it."""
        *by_row, broken = launched.read.arrived().tolist()
        size = len(by_row) // 3
        found = Heard(by_row[:size], by_row[size : 2 * size], by_row[2 * size :], bool(broken))
        for row, (length, limit) in launched.begun.items():
            found.escalated[row], found.lengths[row], found.limits[row] = 0, length, limit
        return found

    def begin(self) -> dict[int, tuple[int, int]]:
        """Let rows that were restarted join the steps: the model reads their prompts but for the last token.

        Lengths and limits by row.
        """
        buffer, session, begun = self.state.buffer, self.state.sessions[0], {}
        for row in self.restarted:
            at = buffer.every[row : row + 1]
            prompt = buffer.lengths[at]
            n, limit = torch.cat([prompt, buffer.limits[at]]).tolist()
            if n > 1:
                session.catch_up(buffer.ids, prompt - 1, at, span=ReadSpan(n - 1, n - 1))
            begun[row] = n, limit
        self.restarted.clear()
        return begun

    def _step(self, rows: Tensor, reach: int) -> tuple[Tensor, Tensor]:
        """For the host, [3 * batch + 1]: who escalates, lengths, limits, broken; and the model's best tokens [r]."""
        state, buffer, session, policy_state = self.state, self.state.buffer, self.state.sessions[0], self.policy_state
        lengths = buffer.lengths[rows]
        hidden = policy_state is not None and policy_state.needs.needs_hidden
        logits, hidden = session.next(buffer.ids, lengths, rows, hidden, ReadSpan(reach, 1))
        tokens = state.draw(logits, rows, lengths)
        best = tokens if state.sampling.greedy else logits.argmax(-1)
        escalates = None if policy_state is None else policy_state.decide(logits, rows, lengths, hidden)
        return self._commit(rows, tokens, escalates), best

    def _commit(self, rows: Tensor, tokens: Tensor, escalates: Tensor | None) -> Tensor:
        """Commit ``tokens`` [r] that ``escalates`` [r] lets pass, and tell the host."""
        buffer, greatest = self.state.buffer, self.runner.greatest
        if (kernel := commit_kernel(buffer.device)) is not None:
            text = buffer.ids, buffer.writers, buffer.lengths, buffer.limits, buffer.eos
            return kernel(tokens, escalates, rows, *text, greatest, self.verify_eos)
        going = buffer.lengths[rows] < buffer.limits[rows]
        up = torch.zeros_like(going)
        if escalates is not None:
            up = (escalates | buffer.ends(tokens) if self.verify_eos else escalates) & going
        buffer.advance(rows, tokens, torch.zeros_like(tokens), going & ~up)
        flags = torch.zeros_like(buffer.lengths).index_copy(0, rows, up.long())
        return torch.cat([flags, buffer.lengths, buffer.limits, greatest.isnan().any().long()[None]])


@cache
def commit_kernel(device: torch.device) -> Callable[..., Tensor] | None:
    """``kernels.commit.commit`` on CUDA, where Triton is there."""
    if device.type != "cuda":
        return None
    try:
        from decoding.kernels import commit
    except ImportError as error:
        logging.getLogger(__name__).info("tokens are committed by torch operations: %s", error)
        return None
    return commit.commit


def write_ahead(steps: AheadSteps, answer=None) -> Iterator[Heard]:
    """What the host hears of one step after the other, until the caller stops.

    ``answer(rows, lengths, launched)`` writes a token in each of the escalated ``rows``, of the given lengths; the step
    ``launched`` is the first that was launched after theirs.
    """
    buffer = steps.state.buffer
    every = list(range(len(buffer.every)))
    order = _bucket(every, every, buffer.rows.tolist())
    before, answered = steps.launch(order), set()
    while True:
        now = steps.launch(order)
        heard = steps.heard(before)
        # For a row that was just answered this step was wasted: it had been launched before.
        up = [row for row in before.order if heard.escalated[row] and row not in answered]
        if up:
            answer(up, [heard.lengths[row] for row in up], now)
        steps.state.wasted += len(up)
        yield heard
        now.begun = steps.begin()
        going = [row for row in every if heard.lengths[row] < heard.limits[row] or row in up or row in now.begun]
        order, before, answered = _bucket(every, order, going), now, set(up)


def _bucket(every: list[int], order: list[int], going: list[int]) -> list[int]:
    """``going`` and, up to a power of two, other rows: few sizes are recorded, and a closed row does nothing.

    The rows of ``order``, those of the last step, if they are no more than that.
    """
    size = 1 << max(len(going) - 1, 0).bit_length()
    if size >= len(order) and set(going) <= set(order):
        return order
    others = [row for row in every if row not in set(going)]
    return sorted(going + others[: size - len(going)])
