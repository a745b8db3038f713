"""Prompt lookup: the text itself is the draft."""

from __future__ import annotations

import torch
from torch import Tensor

from decoding.state.suffix import suffix_matches


class PromptLookup:
    """Propose what followed the last tokens of the text when they stood there before (Saxena, prompt lookup decoding).

    Looks for the longest end of the text, of at most ``ngram`` and at least ``least`` tokens, that occurs earlier,
    prompt included, and takes the latest such place. What is copied may run into itself, as in LZ77, so a loop is
    continued for as long as asked. Raises ValueError unless 1 <= least <= ngram.
    """

    def __init__(self, ngram: int = 3, least: int = 1):
        if not 1 <= least <= ngram:
            raise ValueError(f"prompt lookup needs 1 <= least <= ngram, not {least} and {ngram}")
        self.ngram, self.least = ngram, least

    def propose(self, ids: Tensor, lengths: Tensor, rows: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        """Tokens [r, limit] and how many of them are meant [r]: all or none. See ``draft_model.Proposer``."""
        texts = ids[rows]
        same = suffix_matches(texts, lengths, self.ngram)
        longest = same.amax(1)
        # The latest of the longest: places count for less than any length.
        place = torch.arange(texts.shape[1], device=ids.device)
        begin = (same * texts.shape[1] + place).argmax(1) + 1
        period = (lengths - begin).clamp(min=1)
        copied = begin[:, None] + torch.arange(limit, device=ids.device) % period[:, None]
        return texts.gather(1, copied.clamp(max=texts.shape[1] - 1)), limit * (longest >= self.least)
