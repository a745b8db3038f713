"""The ids that models share. They must mean the same; that a tokenizer has more of them does no harm."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SharedIds:
    """The part of a model in texts of the last model, which may use tokens that it lacks."""

    lacking: Tensor
    """bool [vocab] ids of the last model that it must not write"""
    read: Tensor | None
    """[vocab] the id that it reads for each; None where its embedding has them all"""

    def masked(self, logits: Tensor) -> Tensor:
        """[..., vocab] ``logits`` [..., ids that both heads have], -inf at the ids that it lacks."""
        logits = F.pad(logits, (0, len(self.lacking) - logits.shape[-1]))
        return logits.masked_fill(self.lacking, -torch.inf)

    def readable(self, ids: Tensor) -> Tensor:
        """``ids`` as the model can read them."""
        return ids if self.read is None else self.read[ids]


def check_compatible(models: Sequence) -> list[SharedIds | None]:
    """How each model takes part in a text of the last one; None where every id of the last model is one of its own.

    An id may be known to one model only: added tokens, padded heads, padding that llama.cpp names [PAD512]. A smaller
    model never writes what the last one lacks, and the last one's EOS ends a text. Such a difference is logged once.
    ValueError names the first id that means two things. Without tokenizers the heads must be equal.
    """
    return [_shared(lm, models[-1]) for lm in models]


_known: WeakKeyDictionary = WeakKeyDictionary()
"""by ``LM``, then by tokenizer and size of the last one: vocabularies are compared once, not for every text"""


def _shared(lm, last) -> SharedIds | None:
    if lm.tokenizer is None or last.tokenizer is None:
        if lm.vocab != last.vocab:
            raise ValueError(f"models without tokenizers need one vocabulary size, not {lm.vocab} and {last.vocab}")
        return None
    if lm.tokenizer_hash == last.tokenizer_hash and lm.vocab >= last.vocab:
        return None
    known, key = _known.setdefault(lm, {}), (last.tokenizer_hash, last.vocab)
    if key not in known:
        with torch.inference_mode(False):
            known[key] = _compared(lm, last)
    return known[key]


def _compared(lm, last) -> SharedIds | None:
    mine, theirs = _tokens(lm), _tokens(last)
    both = mine.keys() & theirs.keys()
    clash = min((i for i in both if mine[i] != theirs[i]), default=None)
    if clash is not None or not both:
        what = (
            "no id is in both"
            if clash is None
            else f"id {clash} is {mine[clash]!r} in one and {theirs[clash]!r} in the other"
        )
        raise ValueError(
            f"{lm.name} and {last.name} have different tokenizers: {what}; two models can only share a text when their "
            "ids mean the same"
        )
    if said := _differences(lm, last, mine, theirs):
        logging.getLogger(__name__).warning("%s shares a text with %s, whose ids count: %s", lm.name, last.name, said)
    lacking = torch.ones(last.vocab, dtype=torch.bool)
    lacking[[i for i in both if i < last.vocab]] = False
    return SharedIds(lacking.to(lm.device), _read(lm, last.vocab)) if lacking.any() else None


def _tokens(lm) -> dict[int, str]:
    """The tokens that a model has, by id; llama.cpp's converter names an id without a token [PAD and itself]."""
    found = {i: token for token, i in lm.tokenizer.get_vocab().items() if i < lm.head}
    return {i: token for i, token in found.items() if token != f"[PAD{i}]"}


def _read(lm, vocab: int) -> Tensor | None:
    if lm.head >= vocab:
        return None
    unknown = next((i for i in (lm.tokenizer.unk_token_id, lm.tokenizer.eos_token_id) if i is not None), 0)
    read = torch.arange(vocab, device=lm.device)
    read[lm.head :] = unknown
    return read


def _differences(lm, last, mine: dict[int, str], theirs: dict[int, str]) -> str:
    parts = []
    for who, has, lacks in ((lm, mine, theirs), (last, theirs, mine)):
        if only := sorted(has.keys() - lacks.keys()):
            parts.append(f"only {who.name} has {has[only[0]]!r}" + f" and {len(only) - 1} more" * (len(only) > 1))
    for name in ("bos_token", "eos_token"):
        own, counts = (getattr(one.tokenizer, name, None) for one in (lm, last))
        if own != counts:
            parts.append(f"the {name} is {counts!r}, not {own!r}")
    return "; ".join(parts)
