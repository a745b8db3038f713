"""Earlier places of a text at which its last tokens stand already.

``policies.features.numba_kernels`` and ``policies.export.runtime`` match suffixes without torch, for speed and for
engines that do not have it; tests compare them with these.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def longest_repeated_suffix(answers: Tensor, lengths: Tensor, limit: int = 8, cached: bool = True) -> Tensor:
    """[r] length, at most ``limit``, of the longest suffix that occurs earlier in ``answers`` [r, n] of ``lengths``."""
    return suffix_matches(answers, lengths, limit, cached).amax(1)


def suffix_matches(texts: Tensor, lengths: Tensor, limit: int, cached: bool = True) -> Tensor:
    """[r, n] how many tokens, at most ``limit``, up to each place equal the last ones of ``texts`` [r, n], cut to
    ``lengths`` [r]; 0 from the last token on. A recorded step may not read what a cache drops one day: ``cached``."""
    windows = _suffix_windows if cached else _suffix_windows.__wrapped__
    ends, back, where, inside = windows(texts.shape[1], limit, texts.device)
    last = lengths.unsqueeze(1) - 1
    tail = texts.gather(1, (last - back).clamp_(min=0))
    same = texts[:, where] == tail.unsqueeze(1)
    same &= inside & (ends < last).unsqueeze(2)
    return same.cumprod(-1).sum(-1)


@lru_cache(maxsize=8)
def _suffix_windows(size: int, limit: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ends [size], offsets back [limit], the index [size, limit] at each offset before each end, and its validity.

    Cached: they are the same at every step, and a dozen small operations are much of a decision's cost.
    """
    ends, back = torch.arange(size, device=device), torch.arange(limit, device=device)
    where = ends.unsqueeze(1) - back
    return ends, back, where.clamp(min=0), where >= 0
