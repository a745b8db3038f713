"""What a drafter learns from: the target's answers and text, some answers held out by the hash of their prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from train.distillation.batches import Sequence

HELD_OUT = 30
"""one prompt in this many is held out"""


def read_generations(path: Path, limit: int) -> list[Sequence]:
    """Read a jsonl of ``prompt_ids`` and ``new_ids``; sequences are cut to ``limit`` tokens.

    Raises ValueError, naming the line, for a row that is not such an object.
    """
    sequences = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            prompt, new = list(map(int, row["prompt_ids"])), list(map(int, row["new_ids"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: no object with lists prompt_ids and new_ids") from error
        if 0 < len(prompt) < limit and new:
            sequences.append(Sequence((prompt + new)[:limit], len(prompt)))
    return sequences


def read_text(path: Path, tokenizer, length: int) -> list[Sequence]:
    """Cut a text file into sequences of ``length`` tokens."""
    ids = tokenizer(path.read_text(encoding="utf-8"))["input_ids"]
    return [Sequence(ids[i : i + length], 0) for i in range(0, len(ids) - length + 1, length)]


def read_corpus(
    generations: list[Path], text: list[Path], tokenizer, length: int, text_tokens: int, seed: int
) -> list[Sequence]:
    """The answers and, drawn at random, up to ``text_tokens`` tokens of text, in sequences of at most ``length``."""
    sequences = [s for path in generations for s in read_generations(path, length)]
    pieces = [s for path in text for s in read_text(path, tokenizer, length)]
    keep = np.random.default_rng(seed).permutation(len(pieces))[: text_tokens // length]
    return sequences + [pieces[i] for i in keep]


def heldout(sequences: list[Sequence]) -> set[int]:
    """Indices held out: about one prompt in 30, at least one of two, chosen by hash: all its answers go together.

    Only where there are no answers at all, pieces of text are held out.
    """
    answers = any(s.prompt for s in sequences)
    hashes = {i: int(sequence_hash(s), 16) for i, s in enumerate(sequences) if s.prompt or not answers}
    held = {i for i, h in hashes.items() if h % HELD_OUT == 0}
    if held or len(set(hashes.values())) < 2:
        return held
    return {i for i, h in hashes.items() if h == min(hashes.values())}


def sequence_hash(sequence: Sequence) -> str:
    """The hash of the prompt, or of a piece of text."""
    return hash_of(sequence.ids[: sequence.prompt] if sequence.prompt else sequence.ids)


def hash_of(ids: Iterable[int]) -> str:
    """What is stored of a training prompt: 12 hexadecimal digits of the hash of its token ids."""
    return hashlib.sha256(repr([int(i) for i in ids]).encode()).hexdigest()[:12]


def prompt_hashes(sequences: list[Sequence]) -> str:
    """The hashes of the different prompts, sorted, with spaces between."""
    return " ".join(sorted({sequence_hash(s) for s in sequences if s.prompt}))
