"""The state of one decoder on one batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from decoding.kv_cache.session import Session
from decoding.kv_cache.token_tree import TokenTree
from decoding.state.host_reads import host_waits
from decoding.state.sampling import DRAW, Sampling
from decoding.state.text_processors import TextProcessors
from decoding.state.token_buffer import TokenBuffer


@dataclass(slots=True)
class GenerationState:
    """The argument of ``Decoder.write``: the tokens, one session per model, and counters that it may increase."""

    buffer: TokenBuffer
    sessions: list[Session]
    sampling: Sampling
    processors: TextProcessors | None = None
    drafted: int | Tensor = 0  # a tensor where reading it would make the host wait
    escalated: list[int] = field(default_factory=list)  # per policy, the tokens escalated by it or for an EOS
    ahead: bool = False  # whether the host may hear of tokens late, as nobody looks at each
    runner: Any = None  # the ``StepRunner`` of a decoder that drafts
    wasted: int = 0  # tokens that the first model computed again before the host heard that it had escalated them

    def processed(
        self, logits: Tensor, rows: Tensor, lengths: Tensor, tree: TokenTree | None = None, nodes: int = 0
    ) -> Tensor:
        """``logits`` of any of the models as its tokens are drawn from, and as policies and acceptance rules see them.

        [r, vocab] after the first ``lengths`` [r] tokens of ``rows`` [r], or [r, m, vocab] at the places of their
        drafts, which are in the buffer (``TextProcessors.places``).
        """
        if self.processors is None:
            return logits
        buffer = self.buffer
        ids, prompts = buffer.ids[rows], buffer.prompts[rows]
        if logits.dim() == 2:
            return self.processors.next(logits, ids, lengths, prompts, buffer.lengths[rows])
        return self.processors.places(logits, ids, lengths, prompts, tree, nodes)

    def draw(self, logits: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
        """The token [r] after the first ``lengths`` [r] of ``rows`` [r], drawn from ``logits`` [r, vocab]."""
        if self.sampling.greedy:  # noise is expensive
            return self.sampling.draw(logits, None)
        return self.sampling.draw(logits, self.buffer.uniform(rows, lengths - self.buffer.prompts[rows], DRAW))

    def restart(self, row: int, prompt: Tensor, seed: int, budget: int | None = None) -> None:
        """Let a closed row begin another text (``TokenBuffer.restart``), of which no model has read anything."""
        self.buffer.restart(row, prompt, seed, budget)
        for session in self.sessions:
            at = self.buffer.every[row : row + 1]
            session.rollback(at, torch.zeros_like(at))

    @property
    def runs_ahead(self) -> bool:
        """Whether the host hears of tokens late: it would wait for each, nobody looks at each, no processor does."""
        return self.ahead and host_waits(self.buffer.device) and self.processors is None

    @property
    def goes_ahead(self) -> bool:
        """Whether to begin with that now: every row has but its last token unread, as after a commit of all of them."""
        return self.runs_ahead and self.buffer.gained[1] > 0

    @property
    def accepted(self) -> int:
        """Drafted tokens that are in the answers: those cut off by an EOS, the budget or a stop string do not count."""
        buffer = self.buffer
        written = torch.arange(buffer.capacity, device=buffer.device) < buffer.lengths[:, None]
        return int(((buffer.writers == 0) & written).sum()) if int(self.drafted) else 0
