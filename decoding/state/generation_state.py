"""One decoder at work on one batch: everything that has state."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from decoding.kv_cache.session import Session
from decoding.state.sampling import DRAW, Sampling
from decoding.state.token_buffer import TokenBuffer


@dataclass(slots=True)
class GenerationState:
    """What a decoder's ``write`` is given: the text, one session per model slot, and counters it may raise."""

    buffer: TokenBuffer
    sessions: list[Session]
    sampling: Sampling
    drafted: int | Tensor = 0
    """a tensor where counting would make the host wait"""
    escalated: list[int] = field(default_factory=list)
    """per policy: how often it said True (or an EOS was handed on)"""

    def draw(self, logits: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
        """The next token [r] of ``rows`` [r], of ``lengths`` [r] tokens, by ``logits`` [r, vocab]."""
        if self.sampling.greedy:  # the noise is what costs
            return self.sampling.draw(logits, None)
        return self.sampling.draw(logits, self.buffer.uniform(rows, lengths - self.buffer.prompts[rows], DRAW))

    @property
    def accepted(self) -> int:
        """Drafted tokens that are in the answers: what an EOS, the budget or a stop string cut off was not kept."""
        buffer = self.buffer
        written = torch.arange(buffer.capacity, device=buffer.device) < buffer.lengths[:, None]
        return int(((buffer.writers == 0) & written).sum()) if int(self.drafted) else 0
