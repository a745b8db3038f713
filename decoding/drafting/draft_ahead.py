"""Drafting that does not wait: on an accelerator, reading a stop's answer would idle it at every drafted token."""

from __future__ import annotations

import torch
from torch import Tensor

from decoding.drafting.draft_model import DraftOutput, sampling_noise, unread_span
from decoding.kv_cache.session import ReadSpan
from decoding.state.generation_state import GenerationState
from decoding.state.policy_state import PolicyState


def host_waits(device: torch.device) -> bool:
    """Whether reading a value makes the host wait until the device has done all that it was given."""
    return device.type != "cpu"


class AsyncFlag:
    """A flag [] on its way to the host while the device works on."""

    def __init__(self, flag: Tensor):
        self.value, self.copied = flag, None
        if flag.is_cuda:
            self.value = torch.empty((), dtype=flag.dtype, pin_memory=True)
            self.value.copy_(flag, non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()

    def __bool__(self) -> bool:
        if self.copied is not None:
            self.copied.synchronize()
        return bool(self.value)


def draft_ahead(
    state: GenerationState,
    policy_state: PolicyState,
    rows: Tensor,
    lengths: Tensor,
    room: Tensor,
    limit: int,
    keep_stop_token: bool,
) -> DraftOutput:
    """``drafting.draft`` with a stop, where no row is near its budget: the same drafts, and at most one step more.

    All rows draft until the host hears that all have stopped, and it hears of a step while the next one runs. What a
    row drafts after its stop is dropped: ``lengths`` of the result leaves it out. The target reads it, for nothing, as
    who reads so few tokens pays for its weights alone.
    """
    buffer, session, drafted = state.buffer, state.sessions[0], room
    chance, span = sampling_noise(state, rows, lengths, limit), None if keep_stop_token else unread_span(buffer, limit)
    tokens, logits, going = [], [], []
    for place in range(limit):
        if place > 1 and not going[place - 2]:
            break
        now = lengths + place
        row_logits, states = session.next(buffer.ids, now, rows, policy_state.needs.needs_hidden, span)
        span = ReadSpan(buffer.longest + place + 1, 1)
        stopped = policy_state.decide(row_logits, rows, now, states) & (drafted > place)
        drafted = torch.where(stopped, place + keep_stop_token, drafted)
        going.append(AsyncFlag((drafted > place + 1).any()))
        drawn = state.sampling.draw(row_logits, chance[:, place])
        buffer.ids[rows, now] = drawn
        tokens.append(drawn)
        logits.append(row_logits)
    if keep_stop_token:  # else the next round asks again
        policy_state.forget(rows, lengths + drafted)
    return DraftOutput(torch.stack(tokens, 1), torch.stack(logits, 1), drafted, drafted.sum(), even=True)
