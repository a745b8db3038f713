"""The texts that processors of logits read, and what else they may depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class Texts:
    """n texts, each with logits for its next token."""

    ids: Tensor  # [n, width] right-aligned; before a text there is ``vocab``, which is no id
    lengths: Tensor  # [n] tokens, those of the prompt included
    prompts: Tensor  # [n] tokens of the prompt

    @property
    def positions(self) -> Tensor:
        """[n] tokens of the answer so far"""
        return self.lengths - self.prompts


Processor = Callable[[Texts, Tensor], Tensor]
"""New logits [n, vocab] for float32 logits [n, vocab] of the next token of n texts, which it may change in place."""


@dataclass(frozen=True, slots=True)
class TextFacts:
    """What processors may depend on beside their own value."""

    vocab: int
    eos: tuple[int, ...]
    budget: int  # most tokens of an answer
    device: torch.device
    forced_bos: bool = False  # whether a prompt of one token is followed by a forced one
