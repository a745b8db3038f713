"""Sessions that have read a prompt, so that its next answer is read without it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from decoding.kv_cache.session import Session
from decoding.models.lm import LM
from decoding.models.memory import cache_bytes

LIMIT = 512 * 2**20
"""bytes of all caches that are kept: 16 prompts with answers, of 580 tokens each, in the shape of Qwen2.5 1.5B"""


class PromptSessions:
    """The sessions of ``lm`` for the prompts that were read last, with room for answers of ``budget`` tokens."""

    def __init__(self, lm: LM, budget: int):
        self.lm, self.budget = lm, budget
        self.kept: dict[tuple[int, ...], tuple[Session, int]] = {}
        """by prompt, the one used last at the end: its session and the bytes of its cache"""

    @classmethod
    def of(cls, lm: LM, budget: int) -> PromptSessions | None:
        """Those of a model that reads in parts what it reads as a whole, to the bit or nearly so; None of others."""
        return None if lm.fused_forward() is None else cls(lm, budget)

    @torch.no_grad()
    def logits(self, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        """[n, vocab] logits from which the model would have drawn each of the n tokens of ``answer``."""
        session = self._session(tuple(prompt), len(answer))
        ids = torch.tensor([[*prompt, *answer]], device=self.lm.device)
        row = torch.zeros(1, dtype=torch.long, device=ids.device)
        before, whole = torch.tensor([len(prompt) - 1, ids.shape[1]], device=ids.device).split(1)
        session.rollback(row, before)  # the prompt's last token is read again, for the logits after it
        return session.catch_up(ids, whole, row, len(answer) + 1)[0, :-1]

    def _session(self, prompt: tuple[int, ...], new: int) -> Session:
        """That of ``prompt``, or a new one, with room for ``new`` tokens more; those not used for longest are freed."""
        session, size = self.kept.pop(prompt, (None, 0))
        if session is None or new > self.budget:
            capacity = len(prompt) + max(new, self.budget)
            session, size = self.lm.session(1, capacity), cache_bytes(self.lm, 1, capacity)
        self.kept[prompt] = session, size
        while len(self.kept) > 1 and sum(bytes_ for _, bytes_ in self.kept.values()) > LIMIT:
            del self.kept[next(iter(self.kept))]
        return session
