"""Rounds of speculative decoding on known texts, all texts at once: only where drafts end is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from decoding.cost.costs import ModelCosts, seconds


class LoggedTexts(NamedTuple):
    """The target's own texts, one after the other."""

    first: np.ndarray
    """[texts] index of each one's first position"""
    tokens: np.ndarray
    """[texts] how many tokens it has"""
    prompt_tokens: np.ndarray
    """[texts]"""
    run: np.ndarray
    """[positions] how many tokens are accepted of a long draft that begins here"""


class Rounds(NamedTuple):
    """Rounds as arrays [rounds], text by text."""

    text: np.ndarray
    """index of the text"""
    asked: np.ndarray
    """calls of the draft; one more than drafted where it was asked and told to stop"""
    drafted: np.ndarray
    accepted: np.ndarray
    small_reads: np.ndarray
    """tokens that the draft's first call of the round reads; its others read 1, and without a call there is none"""
    large_reads: np.ndarray

    def seconds(self, cost: ModelCosts) -> np.ndarray:
        """[rounds] priced by the timing tables of ``cost``."""
        small = seconds(cost.small, self.small_reads) + (self.asked - 1) * seconds(cost.small, 1)
        return np.where(self.asked > 0, small, 0.0) + seconds(cost.large, self.large_reads)


class Starts(NamedTuple):
    """Where rounds begin: what a policy may know of the past, as arrays [r]."""

    text: np.ndarray
    position: np.ndarray
    """tokens of the answer before the round"""
    room: np.ndarray
    """the longest draft"""
    agreed: np.ndarray
    """1.0 where the round before was accepted whole, else 0.0; NaN in the first"""


def runs(agree: np.ndarray) -> np.ndarray:
    """[positions] how many of ``agree`` [positions] are true from each on, without a break."""
    n = len(agree)
    broken = np.where(agree, n, np.arange(n))
    return np.minimum.accumulate(broken[::-1])[::-1] - np.arange(n)


def play(
    texts: LoggedTexts,
    length: int,
    budget: int,
    stop: Callable[[Starts], np.ndarray] | None = None,
    keep_stop_token: bool = False,
) -> Rounds:
    """The rounds of decoding with drafts of at most ``length`` tokens, of which the last may be cut by ``budget``.

    ``stop(starts)`` [r] is the place in the draft (0: before its first token) at which a stop policy says True, or
    anything from ``room`` on when it never does; ``keep_stop_token`` as in ``Speculative``. A draft does not foresee an
    EOS. What would be accepted beyond one is not counted: it is no text.
    """
    tokens = np.minimum(texts.tokens, budget)
    text, position = np.arange(len(tokens)), np.zeros(len(tokens), int)
    agreed, small, large = np.full(len(tokens), np.nan), texts.prompt_tokens, texts.prompt_tokens
    found = []
    while len(text):
        room = np.minimum(length, budget - position - 1)
        said = room if stop is None else np.minimum(stop(Starts(text, position, room, agreed)), room)
        asked = said + (said < room)
        drafted = asked if keep_stop_token else said
        right = np.minimum(drafted, texts.run[texts.first[text] + position])
        accepted = np.minimum(right, tokens[text] - position)
        found.append((text, asked, drafted, accepted, small, large + drafted))
        # The draft has not read the last token that it wrote, and never what it was not asked to go on from.
        behind = right + 1 - np.minimum(asked - 1, right)
        position = position + right + 1
        on = position < tokens[text]
        text, position, agreed, small = text[on], position[on], (right == drafted)[on].astype(float), behind[on]
        large = np.ones_like(small)
    columns = np.concatenate([np.stack(part) for part in found], axis=1)
    return Rounds(*columns[:, np.argsort(columns[0], kind="stable")])
