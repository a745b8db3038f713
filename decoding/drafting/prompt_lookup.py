"""Prompt lookup: the text itself is the draft."""

from __future__ import annotations

import torch
from torch import Tensor


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
        same = self._same(texts, lengths)
        longest = same.amax(1)
        # The latest of the longest: places count for less than any length.
        place = torch.arange(texts.shape[1], device=ids.device)
        begin = (same * texts.shape[1] + place).argmax(1) + 1
        period = (lengths - begin).clamp(min=1)
        copied = begin[:, None] + torch.arange(limit, device=ids.device) % period[:, None]
        return texts.gather(1, copied.clamp(max=texts.shape[1] - 1)), limit * (longest >= self.least)

    def _same(self, texts: Tensor, lengths: Tensor) -> Tensor:
        """[r, n] how many tokens up to each place equal the last ones of the text; 0 at the end of the text itself."""
        back = torch.arange(self.ngram, device=texts.device)
        end = torch.arange(texts.shape[1], device=texts.device)
        last = lengths[:, None] - 1 - back
        tail = texts.gather(1, last.clamp(min=0))
        where = end[:, None] - back
        same = texts[:, where.clamp(min=0)] == tail[:, None]
        same &= (where >= 0) & (end < lengths[:, None] - 1)[..., None]
        return same.long().cumprod(-1).sum(-1)
