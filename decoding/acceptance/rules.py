"""How much of a draft is kept: the rules, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from decoding.acceptance.cascade import Cascade
from decoding.acceptance.draft_block import DraftBlock
from decoding.acceptance.learned import Learned
from decoding.acceptance.lossless import Block, Exact
from decoding.acceptance.lossy import Divergence, FixedRatio, Joint, Lenient, Rollback, Typical


class Acceptance(Protocol):
    """``(accepted [r], next token [r])``: how many drafted tokens are kept, and the one after them.

    A rule holds settings, never anything about a text; rows do not touch each other and the host waits for nothing.
    """

    def __call__(self, draft: DraftBlock) -> tuple[Tensor, Tensor]: ...


RULES: dict[str, Callable[..., Acceptance]] = {
    kind.__name__: kind
    for kind in (Exact, Block, Lenient, Typical, Divergence, Cascade, Rollback, Joint, FixedRatio, Learned)
}
"""Every rule; all but ``Learned``, which takes a policy, have defaults."""
LOSSLESS = ("Exact", "Block")
"""The rules whose output is distributed as the target's own."""


def rule(name: str, **settings) -> Acceptance:
    """The rule called ``name``. ValueError, one sentence, for an unknown one or settings that it cannot have."""
    if name not in RULES:
        raise ValueError(f"unknown acceptance rule {name!r}; the known ones are {', '.join(RULES)}")
    try:
        return RULES[name](**settings)
    except TypeError as error:
        raise ValueError(f"the acceptance rule {name} cannot have {settings}: {error}") from error


class Strict:
    """``rule``, but a draft that begins within the first ``prefix`` tokens of an answer is verified by ``Exact``.

    Lossy rules lose what an aligned model refuses long before they lose usefulness, and what it refuses is decided in
    the first tokens (Secure speculative decoding, 2610.08678). Raises ValueError for a negative ``prefix``.
    """

    def __init__(self, rule: Acceptance, prefix: int):
        if prefix < 0:
            raise ValueError(f"strict_prefix must be at least 0, not {prefix}")
        self.rule, self.prefix, self.exact = rule, prefix, Exact()

    def __call__(self, draft: DraftBlock) -> tuple[Tensor, Tensor]:
        strict = draft.starts < self.prefix
        pairs = zip(self.exact(draft), self.rule(draft), strict=True)
        accepted, after = (torch.where(strict, exact, lossy) for exact, lossy in pairs)
        return accepted, after
