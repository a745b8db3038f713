"""What kind of text each token of a vocabulary is."""

from __future__ import annotations

import unicodedata

import torch
from torch import Tensor

BITS = {"word_start": 1, "digit": 2, "punctuation": 4, "newline": 8}

# How byte-level BPE (GPT-2, Qwen, Llama 3) and SentencePiece (Llama 2, Gemma) write a leading space in a token.
_SPACES = ("Ġ", "▁", " ")


def token_classes(tokenizer) -> Tensor:
    """The flags of ``BITS`` for every token id, as a uint8 tensor [vocab].

    A digit or punctuation token holds nothing else but white space; a newline token holds at least one newline.
    Needs ``len``, ``convert_ids_to_tokens`` and ``decode`` of the tokenizer, and takes about a second for 100 000 ids.
    """
    ids = list(range(len(tokenizer)))
    tokens = tokenizer.convert_ids_to_tokens(ids)
    flags = [0 if token is None else _flags(token, tokenizer.decode([i])) for i, token in zip(ids, tokens, strict=True)]
    return torch.tensor(flags, dtype=torch.uint8)


def _flags(token: str, text: str) -> int:
    # SentencePiece's decode drops a leading space, and a byte-level token is not readable text: both are needed.
    content = text.strip()
    found = {
        "word_start": token.startswith(_SPACES),
        "digit": content.isdecimal(),
        "punctuation": content != "" and all(map(_is_punctuation, content)),
        "newline": "\n" in text,
    }
    return sum(BITS[name] for name, present in found.items() if present)


def _is_punctuation(character: str) -> bool:
    # U+FFFD stands for part of a character, yet Unicode calls it a symbol.
    return unicodedata.category(character)[0] in "PS" and character != "\ufffd"
