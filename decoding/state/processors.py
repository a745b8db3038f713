"""Processors: the settings of a generation_config that change logits by the text before them, as in transformers.

A processor keeps no state. What it knows of a text it reads in the text, so a rollback needs nothing, and the places of
a draft are texts like others. transformers' own processors check the values, but do not serve: they suppose texts of
one length, and copy the logits several times. These change the few entries that they are about, in place: at 5 places
of 151,936 tokens 0.2 to 0.3 ms each on one thread, where those took 8 to 10.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import NoRepeatNGramLogitsProcessor

from decoding.state.sequence_bias import LARGEST, bad_words, sequence_bias
from decoding.state.texts import Processor, TextFacts, Texts

MOST = 2**31
"""above the id of any token and the length of any text"""


class ProcessorKind(NamedTuple):
    """A setting: the value at which it has no effect, and how its processor is made; None where it has no effect."""

    neutral: Any
    build: Callable[[Any, TextFacts], Processor | None]


def _repetition(penalty: float, facts: TextFacts) -> Processor:
    penalty = float(penalty)
    if not 1 / LARGEST < penalty < LARGEST:
        raise ValueError(f"it must be a number above 0, at most {LARGEST:g}")

    def process(texts: Texts, logits: Tensor) -> Tensor:
        # A token of the text again in place of what is before it: it is penalised once, however often it is there.
        ids = torch.where(texts.ids == facts.vocab, texts.ids[:, -1:], texts.ids)
        found = logits.gather(1, ids)
        return logits.scatter_(1, ids, torch.where(found < 0, found * penalty, found / penalty))

    return process


def _no_repeat(size: int, facts: TextFacts) -> Processor:
    NoRepeatNGramLogitsProcessor(size)  # raises ValueError for what is no size

    def process(texts: Texts, logits: Tensor) -> Tensor:
        if texts.ids.shape[1] < size:
            return logits
        windows = texts.ids.unfold(1, size, 1)
        begun = texts.ids[:, texts.ids.shape[1] + 1 - size :]
        last = windows[..., -1]
        again = (windows[..., :-1] == begun[:, None]).all(-1) & (last < facts.vocab)
        return logits.scatter_add_(1, last.clamp(max=facts.vocab - 1), torch.where(again, -math.inf, 0.0))

    return process


def _ban(tokens: Sequence[int], facts: TextFacts, when: Callable[[Texts], Tensor] | None = None) -> Processor | None:
    """No ``tokens`` in texts of which ``when`` [n] holds, by default in any."""
    banned = sorted({token for token in tokens if 0 <= token < facts.vocab})
    if not banned:
        return None
    ids = torch.tensor(banned, device=facts.device)
    if when is None:
        return lambda texts, logits: logits.index_fill_(1, ids, -math.inf)

    def process(texts: Texts, logits: Tensor) -> Tensor:
        changed = logits.index_select(1, ids).masked_fill_(when(texts)[:, None], -math.inf)
        return logits.index_copy_(1, ids, changed)

    return process


def _until(least: int, facts: TextFacts, length: Callable[[Texts], Tensor]) -> Processor | None:
    """No ends in texts of which ``length`` [n] is below ``least``."""
    (least,) = _whole(least)
    return _ban(facts.eos, facts, lambda texts: length(texts) < least)


def _force(tokens: Sequence[int], facts: TextFacts, when: Callable[[Texts], Tensor]) -> Processor:
    """Only ``tokens``, one as likely as the other, in texts of which ``when`` [n] holds."""
    forced = torch.where(_members(tokens, facts), 0.0, -math.inf)
    return lambda texts, logits: torch.where(when(texts)[:, None], forced, logits)


def _decay(value: Sequence[float], facts: TextFacts) -> Processor | None:
    """Ends become likelier by a power of the tokens after the first ``start`` ones of an answer."""
    start, factor = (float(part) for part in value)
    if not math.isfinite(start) or not math.isfinite(factor):
        raise ValueError("it must be two finite numbers")
    ends = _members(facts.eos, facts)

    def process(texts: Texts, logits: Tensor) -> Tensor:
        over = (texts.positions - start).clamp(min=0).double()
        gain = (factor**over - 1).float()[:, None] * logits.abs()
        return torch.where(ends & logits.isfinite(), logits + gain, logits)

    return process if facts.eos else None


def _begin(texts: Texts, facts: TextFacts) -> Tensor:
    """bool [n]: whether the next token is the first of the answer that is not forced."""
    return texts.lengths == texts.prompts + (facts.forced_bos & (texts.prompts == 1))


def _members(tokens: Sequence[int], facts: TextFacts) -> Tensor:
    """bool [vocab]: True at ``tokens``. TypeError or ValueError for what are no whole numbers."""
    wanted = torch.tensor(_whole(tokens), dtype=torch.long, device=facts.device)
    return torch.isin(torch.arange(facts.vocab, device=facts.device), wanted)


def _whole(values: Any) -> list[int]:
    """A number or several as a list. ValueError for what is no whole number."""
    values = [values] if isinstance(values, int) else list(values)
    if not all(type(value) is int and abs(value) < MOST for value in values):
        raise ValueError(f"it must be whole numbers below {MOST}")
    return values


PROCESSORS: dict[str, ProcessorKind] = {
    "sequence_bias": ProcessorKind(None, sequence_bias),
    "repetition_penalty": ProcessorKind(1.0, _repetition),
    "no_repeat_ngram_size": ProcessorKind(0, _no_repeat),
    "bad_words_ids": ProcessorKind(None, bad_words),
    "min_length": ProcessorKind(0, lambda n, facts: _until(n, facts, lambda texts: texts.lengths)),
    "min_new_tokens": ProcessorKind(0, lambda n, facts: _until(n, facts, lambda texts: texts.positions)),
    "forced_bos_token_id": ProcessorKind(
        None, lambda bos, facts: _force(_whole(bos), facts, lambda texts: texts.lengths == 1)
    ),
    "forced_eos_token_id": ProcessorKind(
        None, lambda eos, facts: _force(_whole(eos), facts, lambda texts: texts.positions == facts.budget - 1)
    ),
    "exponential_decay_length_penalty": ProcessorKind(None, _decay),
    "suppress_tokens": ProcessorKind(None, lambda tokens, facts: _ban(_whole(tokens), facts)),
    "begin_suppress_tokens": ProcessorKind(
        None, lambda tokens, facts: _ban(_whole(tokens), facts, lambda texts: _begin(texts, facts))
    ),
}
"""Every setting that is applied, in transformers' order. A new one is a line here."""
AFTER = "repetition_penalty"
"""the setting after which the penalties of ``Sampling`` come, as in vLLM and llama.cpp"""


def count_penalties(frequency: float, presence: float, vocab: int) -> Processor:
    """OpenAI's penalties: each token loses ``frequency`` for every time that the answer has it, and ``presence`` once.

    The prompt does not count.
    """

    def process(texts: Texts, logits: Tensor) -> Tensor:
        width = texts.ids.shape[1]
        written = torch.arange(width, device=logits.device) >= width - texts.positions[:, None]
        ids = torch.where(written, texts.ids, vocab)
        counts = logits.new_zeros(len(ids), vocab + 1).scatter_add_(1, ids, torch.ones_like(ids, dtype=logits.dtype))
        counts = counts[:, :vocab]
        return logits - frequency * counts - presence * (counts > 0)

    return process
