"""Sessions that have read a prompt: its next answer is read without it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from decoding.models.memory import cache_bytes

LIMIT = 512 * 2**20
"""bytes of all caches that are kept: 16 prompts of 300 tokens take half of it with a model of 1.5B"""


class PromptSessions:
    """The sessions of ``lm`` for the prompts that were read last, with room for answers of ``budget`` tokens."""

    def __init__(self, lm, budget: int):
        self.lm, self.budget = lm, budget
        self.kept: dict[tuple[int, ...], tuple[object, int]] = {}
        """by prompt, that used last at the end: its session and the bytes of its cache"""

    def logits(self, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        """[n, vocab] logits from which the model would have drawn each of the n tokens of ``answer``."""
        key, longest = tuple(prompt), max(self.budget, len(answer))
        session, size = self.kept.pop(key, (None, 0))
        if session is None or len(answer) > self.budget:
            session = self.lm.session(1, len(prompt) + longest)
            size = cache_bytes(self.lm, 1, len(prompt) + longest)
        ids = torch.tensor([[*prompt, *answer]], device=self.lm.device)
        row, ends = torch.zeros(1, dtype=torch.long, device=ids.device), [len(prompt) - 1, ids.shape[1]]
        before, whole = torch.tensor(ends, device=ids.device).split(1)
        session.rollback(row, before)  # the prompt's last token is read again, for the logits after it
        found = session.catch_up(ids, whole, row, len(answer) + 1)[0, :-1]
        self.kept[key] = session, size
        while sum(size for _, size in self.kept.values()) > LIMIT and len(self.kept) > 1:
            del self.kept[next(iter(self.kept))]
        return found
