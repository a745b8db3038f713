"""Classes of tokens: word starts, digits, punctuation and newlines."""

from __future__ import annotations

import unicodedata

import torch
from torch import Tensor

BITS = {"word_start": 1, "digit": 2, "punctuation": 4, "newline": 8}

# A leading space in byte-level BPE (GPT-2, Qwen, Llama 3) and in SentencePiece (Llama 2, Gemma).
_SPACES = ("Ġ", "▁", " ")


def token_classes(tokenizer) -> Tensor:
    """uint8 [vocab]: the flags of ``BITS`` of every token id.

    A digit or punctuation token holds nothing else but white space; a newline token holds at least one newline.
    Uses ``len``, ``convert_ids_to_tokens`` and ``decode`` of the tokenizer; about a second for 100 000 ids.
    """
    ids = list(range(len(tokenizer)))
    tokens = tokenizer.convert_ids_to_tokens(ids)
    flags = [0 if token is None else _flags(token, tokenizer.decode([i])) for i, token in zip(ids, tokens, strict=True)]
    return torch.tensor(flags, dtype=torch.uint8)


def _flags(token: str, text: str) -> int:
    # Both forms are needed: SentencePiece's decode drops a leading space, and a byte-level token is not readable text.
    content = text.strip()
    found = {
        "word_start": token.startswith(_SPACES),
        "digit": content.isdecimal(),
        "punctuation": content != "" and all(map(_is_punctuation, content)),
        "newline": "\n" in text,
    }
    return sum(BITS[name] for name, present in found.items() if present)


def _is_punctuation(character: str) -> bool:
    # U+FFFD stands for part of a character, though its Unicode category is a symbol.
    return unicodedata.category(character)[0] in "PS" and character != "\ufffd"
