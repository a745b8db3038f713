"""One model writes alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch

from decoding.models.lm import LM
from decoding.state.generation_state import GenerationState
from decoding.state.token_buffer import Commit


class Autoregressive:
    """Plain decoding: the baseline that every other decoder is measured against."""

    scratch: ClassVar[int] = 0

    def __init__(self, model: LM):
        self.models = [model]

    def write(self, run: GenerationState) -> Iterator[Commit]:
        text, (session,) = run.text, run.sessions
        while True:
            rows = text.rows
            lengths = text.lengths[rows]
            logits = session.catch_up(text.ids, lengths, rows, span=text.span(1))[:, -1]
            tokens = run.draw(logits, rows, lengths)
            yield Commit.one(rows, tokens, torch.zeros_like(tokens))
