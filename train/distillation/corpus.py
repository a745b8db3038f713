"""The corpus of a drafter: the target's answers and plain text; a hash of the prompt decides which are held out."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from train.common.atomic import read_rows
from train.common.rows import GenerationRow
from train.data.sources import read_text_file
from train.distillation.batches import Sequence

HOLDOUT = 30  # one prompt in this many is held out


def read_generations(path: Path, limit: int, vocab: int) -> list[Sequence]:
    """The answers in a jsonl of ``prompt_ids`` and ``new_ids`` below ``vocab``, cut to ``limit`` tokens.

    Raises ValueError, naming the line, for any other row.
    """
    found = []
    for number, line in enumerate(read_text_file(path, str(path)).removesuffix("\n").split("\n"), start=1):
        try:
            row = json.loads(line)
            prompt, new = list(map(int, row["prompt_ids"])), list(map(int, row["new_ids"]))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not an object with lists prompt_ids and new_ids") from error
        wrong = next((token for token in prompt + new if not 0 <= token < vocab), None)
        if wrong is not None:
            raise ValueError(f"{path}, line {number}: token {wrong} is none of the {vocab} that the target knows")
        found.append((prompt, new))
    return _sequences(found, limit)


def own_generations(path: Path, limit: int) -> list[Sequence]:
    """The answers that this run has written to ``path``, in the same way. FileError for a damaged file."""
    return _sequences([(row["prompt_ids"], row["new_ids"]) for row in read_rows(path, GenerationRow)], limit)


def _sequences(answers: Iterable[tuple[list[int], list[int]]], limit: int) -> list[Sequence]:
    return [Sequence((prompt + new)[:limit], len(prompt)) for prompt, new in answers if 0 < len(prompt) < limit and new]


def read_text(path: Path, tokenizer, length: int) -> list[Sequence]:
    """A text file in sequences of ``length`` tokens; a shorter rest is dropped."""
    ids = tokenizer(read_text_file(path, str(path)))["input_ids"]
    return [Sequence(ids[i : i + length], 0) for i in range(0, len(ids) - length + 1, length)]


def read_corpus(
    generations: list[Path], text: list[Path], tokenizer, vocab: int, length: int, text_tokens: int, seed: int
) -> list[Sequence]:
    """All answers and up to ``text_tokens`` random tokens of text, in sequences of at most ``length`` tokens."""
    sequences = [s for path in generations for s in read_generations(path, length, vocab)]
    pieces = [s for path in text for s in read_text(path, tokenizer, length)]
    drawn = np.random.default_rng(seed).permutation(len(pieces))[: text_tokens // length]
    return sequences + [pieces[i] for i in drawn]


def holdout_indices(sequences: list[Sequence]) -> set[int]:
    """Indices held out: all answers to about one prompt in 30, chosen by hash, to at least one where there are two.

    Pieces of text are held out only where there are no answers at all.
    """
    answers = any(s.prompt for s in sequences)
    hashes = {i: int(sequence_hash(s), 16) for i, s in enumerate(sequences) if s.prompt or not answers}
    holdout = {i for i, h in hashes.items() if h % HOLDOUT == 0}
    if holdout or len(set(hashes.values())) < 2:
        return holdout
    return {i for i, h in hashes.items() if h == min(hashes.values())}


def sequence_hash(sequence: Sequence) -> str:
    """The hash of the prompt, or of the piece of text."""
    return hash_of(sequence.ids[: sequence.prompt] if sequence.prompt else sequence.ids)


def hash_of(ids: Iterable[int]) -> str:
    """12 hexadecimal digits of the hash of token ids: all that a drafter stores of a training prompt."""
    return hashlib.sha256(repr([int(i) for i in ids]).encode()).hexdigest()[:12]


def prompt_hashes(sequences: list[Sequence]) -> str:
    """The hashes of the distinct prompts, sorted and joined by spaces."""
    return " ".join(sorted({sequence_hash(s) for s in sequences if s.prompt}))
