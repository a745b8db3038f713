"""Rounds of speculative decoding on texts that are known, played for all texts at once without a model."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from decoding.cost.costs import ModelCosts


class LoggedTexts(NamedTuple):
    """The target's own texts, their positions one after the other."""

    first: np.ndarray  # [texts] index of the first position of each text
    tokens: np.ndarray  # [texts] length in tokens
    prompt_tokens: np.ndarray  # [texts]
    accepted_run: np.ndarray  # [positions] tokens accepted of an endless draft that begins there


class Rounds(NamedTuple):
    """Rounds as arrays [rounds], text by text."""

    text: np.ndarray  # index of the text
    asked: np.ndarray  # calls of the draft model; one more than ``drafted`` where the stop policy ended the draft
    drafted: np.ndarray
    accepted: np.ndarray
    small_reads: np.ndarray  # tokens read by the first call of the draft model in the round; its other calls read 1
    large_reads: np.ndarray

    def seconds(self, cost: ModelCosts) -> np.ndarray:
        """[rounds] priced by the timing tables of ``cost``."""
        small = cost.share(0, self.small_reads) + (self.asked - 1) * cost.share(0, 1)
        return np.where(self.asked > 0, small, 0.0) + cost.share(-1, self.large_reads)


class Starts(NamedTuple):
    """The beginnings of r rounds, with what a stop policy may know of the past; arrays [r]."""

    text: np.ndarray
    position: np.ndarray  # tokens of the answer before the round
    room: np.ndarray  # the longest draft
    agreed: np.ndarray  # 1.0 where the round before was accepted in full, else 0.0; NaN in the first round


def run_lengths(agree: np.ndarray) -> np.ndarray:
    """[positions] length of the unbroken run of True in ``agree`` [positions] that begins at each."""
    n = len(agree)
    broken = np.where(agree, n, np.arange(n))
    return np.minimum.accumulate(broken[::-1])[::-1] - np.arange(n)


def play(
    texts: LoggedTexts, length: int, budget: int, stop: Callable | None = None, keep_stop_token: bool = False
) -> Rounds:
    """The rounds of decoding with drafts of at most ``length`` tokens, cut where the answer reaches ``budget``.

    ``stop(starts)`` [r] is the index in the draft at which the stop policy says True, ``room`` or more where it never
    does; ``keep_stop_token`` as in ``Speculative``. A draft may run past the EOS; tokens after it are not counted as
    accepted.
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
        right = np.minimum(drafted, texts.accepted_run[texts.first[text] + position])
        accepted = np.minimum(right, tokens[text] - position)
        found.append((text, asked, drafted, accepted, small, large + drafted))
        # The draft model has not read the last token that it drafted, nor the one that the target wrote.
        behind = right + 1 - np.minimum(asked - 1, right)
        position = position + right + 1
        on = position < tokens[text]
        text, position, agreed, small = text[on], position[on], (right == drafted)[on].astype(float), behind[on]
        large = np.ones_like(small)
    columns = np.concatenate([np.stack(part) for part in found], axis=1)
    return Rounds(*columns[:, np.argsort(columns[0], kind="stable")])
