"""Processors that make a token likelier or impossible after the others of its sequence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import NoBadWordsLogitsProcessor, SequenceBiasLogitsProcessor

from decoding.state.texts import Processor, TextFacts, Texts

LARGEST = 1e30
"""of a number in a setting: logits in float32 stay finite"""


def sequence_bias(biases: Any, facts: TextFacts) -> Processor | None:
    """The bias of each sequence of ids, as a table or in pairs, is added to its last token."""
    pairs = biases.items() if isinstance(biases, dict) else biases
    return _biased([[list(ids), float(bias)] for ids, bias in pairs], facts)


def bad_words(words: Sequence[Sequence[int]], facts: TextFacts) -> Processor | None:
    """The last token of each of ``words``, sequences of ids, is banned; an end alone is none."""
    NoBadWordsLogitsProcessor(words)  # raises ValueError for what are no words
    return _biased([[list(word), -math.inf] for word in words if list(word) not in [[end] for end in facts.eos]], facts)


def _biased(pairs: list[list], facts: TextFacts) -> Processor | None:
    """Add a bias to the last token of a sequence where the others are before it. ``pairs`` of ids and bias."""
    # An id that the models do not share is in no text.
    pairs = [pair for pair in pairs if max(pair[0], default=0) < facts.vocab]
    if not pairs:
        return None
    SequenceBiasLogitsProcessor(pairs)  # raises ValueError for what are no biases
    if not all(bias < LARGEST for _, bias in pairs):  # nor NaN
        raise ValueError(f"a bias must be a number below {LARGEST:g}, or minus infinity")
    pairs = list({tuple(ids): (ids, bias) for ids, bias in pairs}.values())  # the last of two for one sequence
    last = sorted({ids[-1] for ids, _ in pairs})
    tokens, groups = torch.tensor(last, device=facts.device), []
    for n in dict.fromkeys(len(ids) for ids, _ in sorted(pairs, key=lambda pair: len(pair[0]) > 1)):
        some = [(ids, bias) for ids, bias in pairs if len(ids) == n]
        before = torch.tensor([ids[:-1] for ids, _ in some], device=facts.device, dtype=torch.long)
        column = torch.tensor([last.index(ids[-1]) for ids, _ in some], device=facts.device)
        groups.append((before, column, torch.tensor([bias for _, bias in some], device=facts.device)))

    def process(texts: Texts, logits: Tensor) -> Tensor:
        added = logits.new_zeros(len(logits), len(last))
        for before, column, bias in groups:
            n = before.shape[1]
            if n <= texts.ids.shape[1]:
                there = (texts.ids[:, None, texts.ids.shape[1] - n :] == before).all(-1)
                added.index_add_(1, column, torch.where(there, bias, 0.0))
        return logits.index_add_(1, tokens, added)

    return process
