"""Prompt lookup: drafts copied from the text itself."""

from __future__ import annotations

import torch
from torch import Tensor

from decoding.state.suffix import suffix_matches


class PromptLookup:
    """Propose the tokens after an earlier occurrence of the text's last ones (Saxena, prompt lookup decoding).

    Finds the longest suffix of the text, of ``least`` to ``ngram`` tokens, that also occurs earlier, in the prompt or
    the answer, and copies from the latest occurrence. The copy may overlap itself, as in LZ77, so a loop is continued
    to any length. Raises ValueError unless 1 <= least <= ngram.
    """

    def __init__(self, ngram: int = 3, least: int = 1):
        if not 1 <= least <= ngram:
            raise ValueError(f"prompt lookup needs 1 <= least <= ngram, not {least} and {ngram}")
        self.ngram, self.least = ngram, least

    def propose(self, ids: Tensor, lengths: Tensor, rows: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        """Tokens [r, limit] and how many [r] of them are the draft, all or none; see ``draft_model.Proposer``."""
        texts = ids[rows]
        same = suffix_matches(texts, lengths, self.ngram)
        longest = same.amax(1)
        # The latest of the longest matches: any difference in length outweighs the position.
        place = torch.arange(texts.shape[1], device=ids.device)
        begin = (same * texts.shape[1] + place).argmax(1) + 1
        period = (lengths - begin).clamp(min=1)
        copied = begin[:, None] + torch.arange(limit, device=ids.device) % period[:, None]
        return texts.gather(1, copied.clamp(max=texts.shape[1] - 1)), limit * (longest >= self.least)
