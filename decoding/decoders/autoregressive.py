"""Autoregressive decoding by one model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch

from decoding.models.lm import LM
from decoding.state.ahead import AheadSteps, write_ahead
from decoding.state.generation_state import GenerationState
from decoding.state.token_buffer import Commit, Heard


class Autoregressive:
    """Plain decoding: the baseline that every other decoder is measured against."""

    scratch: ClassVar[int] = 0

    def __init__(self, model: LM):
        self.models = [model]

    def write(self, state: GenerationState) -> Iterator[Commit | Heard]:
        buffer, (session,) = state.buffer, state.sessions
        while True:
            rows = buffer.rows
            lengths = buffer.lengths[rows]
            logits = session.catch_up(buffer.ids, lengths, rows, span=buffer.span(1))[:, -1]
            tokens = state.draw(state.processed(logits, rows, lengths), rows, lengths)
            yield Commit.one(rows, tokens, torch.zeros_like(tokens))
            if state.goes_ahead:
                yield from write_ahead(AheadSteps(state))
