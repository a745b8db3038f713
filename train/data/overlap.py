"""Groups of prompts that share most of their 8-grams, in time and memory that grow with the text, not with its square.

Pairs are found by prefix filtering (Chaudhuri et al. 2006, "A Primitive Operator for Similarity Joins"): to share more
than half of its 8-grams, a prompt must share one of the rarer half of them, and most of those are in no other prompt.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from train.data.components import Components

NGRAM = 8
CHUNK = 2**18  # words whose 8-grams are computed at once
PARTS = 64  # of the 8-grams, by their highest bits: one part is sorted at a time
BASE = np.uint64(0x9E3779B97F4A7C15)


class Held(NamedTuple):
    """Which prompt holds which 8-gram; arrays [n], each pair once."""

    gram: np.ndarray
    prompt: np.ndarray


class Grams:
    """The distinct 8-grams of each prompt, as 64-bit hashes.

    Python salts the hashes of words, so a collision, of which fewer than one is expected among 10^9 8-grams, would
    differ from run to run; it would have to hit half of a prompt's 8-grams to join it to another.
    """

    def __init__(self):
        self.parts: list[list[Held]] = [[] for _ in range(PARTS)]
        self._words: list[np.ndarray] = []
        self._waiting = self._first = 0

    def add(self, words: Sequence[str]) -> None:
        """Add the next prompt, of these words."""
        self._words.append(np.fromiter(map(hash, words), np.int64, len(words)))
        self._waiting += len(words)
        if self._waiting >= CHUNK:
            self._sort()

    def _sort(self) -> None:
        """Put the waiting prompts into the parts."""
        held = _held(self._words, self._first)
        self._first += len(self._words)
        self._words, self._waiting = [], 0
        ends = np.searchsorted(held.gram >> np.uint64(58), np.arange(PARTS + 1))  # PARTS is 2^6
        for part, low, high in zip(self.parts, ends[:-1], ends[1:], strict=True):
            part.append(Held(held.gram[low:high].copy(), held.prompt[low:high].copy()))

    def take(self) -> Iterator[Held]:
        """The 8-grams of all prompts, part by part; an 8-gram is in one part. They are forgotten."""
        self._sort()
        for i, part in enumerate(self.parts):
            self.parts[i] = []
            yield Held(*(np.concatenate(columns) for columns in zip(*part, strict=True)))


def _held(words: list[np.ndarray], first: int) -> Held:
    """The distinct 8-grams of some prompts, numbered from ``first``, in the order of the 8-grams."""
    flat = np.concatenate(words).view(np.uint64) if words else np.empty(0, np.uint64)
    prompt = np.repeat(np.arange(first, first + len(words), dtype=np.int32), [len(one) for one in words])
    n = max(0, len(flat) - NGRAM + 1)
    gram = np.zeros(n, np.uint64)
    for k in range(NGRAM):
        gram = gram * BASE + flat[k : k + n]
    whole = prompt[:n] == prompt[len(flat) - n :]
    gram, prompt = gram[whole], prompt[:n][whole]
    order = np.lexsort((prompt, gram))
    gram, prompt = gram[order], prompt[order]
    new = np.ones(len(gram), bool)
    new[1:] = (gram[1:] != gram[:-1]) | (prompt[1:] != prompt[:-1])
    return Held(gram[new], prompt[new])


def join_overlapping(components: Components, families: Sequence[str], grams: Grams, overlap: float) -> None:
    """Join prompts that share more than ``overlap`` of the 8-grams of the one that has fewer.

    families [prompts]. An 8-gram in at least max(5, 2 %) of a family's prompts is of its template and does not count.
    """
    shared, sizes = _shared(families, grams)
    by_gram, by_prompt = _Index.of(shared.gram, shared.prompt), _Index.of(shared.prompt, shared.gram)
    holders = np.diff(by_gram.first)
    alone = sizes.copy()
    alone[: len(by_prompt.first) - 1] -= np.diff(by_prompt.first)
    done = np.zeros(len(holders), bool)  # 8-grams whose prompts are all joined
    # Rarest first, so many of its 8-grams hold one that a prompt shares with any that overlaps it so much.
    prefix = np.maximum(0, np.ceil(sizes * (1 - overlap)).astype(int) - alone)
    for i in np.flatnonzero(prefix):
        own = by_prompt[i]
        for gram in own[np.argsort(holders[own], kind="stable")[: prefix[i]]]:
            if not done[gram]:
                _join_holders(components, i, by_gram[gram], by_prompt, sizes, overlap)
                done[gram] = components.all_joined(by_gram[gram])


def _join_holders(components: Components, i: int, found: np.ndarray, by_prompt, sizes, overlap: float) -> None:
    """Join prompt ``i`` to those of the prompts ``found``, which have as many 8-grams or more, that overlap it."""
    found = found[(sizes[found] >= sizes[i]) & (components.label[found] != components.label[i])]
    if len(found):
        for j in found[_common(by_prompt, by_prompt[i], found) > overlap * sizes[i]].tolist():
            components.join(i, j)


def _common(by_prompt, own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[others] how many of the 8-grams ``own`` each of the prompts ``others`` holds; all have some, in order."""
    first, count = by_prompt.first[others], by_prompt.first[others + 1] - by_prompt.first[others]
    begin = np.cumsum(count) - count
    theirs = by_prompt.values[np.arange(count.sum()) + np.repeat(first - begin, count)]
    held = own[np.searchsorted(own, theirs).clip(max=len(own) - 1)] == theirs
    return np.add.reduceat(held.astype(int), begin)


class _Index(NamedTuple):
    """Values by key: those of key k are ``values[first[k] : first[k + 1]]``."""

    first: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray, values: np.ndarray):
        order = np.argsort(keys, kind="stable")
        count = np.bincount(keys) if len(keys) else np.empty(0, int)
        return cls(np.concatenate([[0], np.cumsum(count)]), values[order])

    def __getitem__(self, key: int) -> np.ndarray:
        return self.values[self.first[key] : self.first[key + 1]]


def _shared(families: Sequence[str], grams: Grams) -> tuple[Held, np.ndarray]:
    """The 8-grams that more than one prompt holds, numbered from 0, and how many each prompt has in all [prompts].

    Those of templates are left out.
    """
    names, family = np.unique(np.array(families, dtype=str), return_inverse=True)
    least = np.maximum(5, 0.02 * np.bincount(family, minlength=len(names)))
    sizes, numbered, found = np.zeros(len(families), int), 0, []
    for held in grams.take():
        order = np.lexsort((family[held.prompt], held.gram))
        held = Held(*(column[order] for column in held))
        own = family[held.prompt]
        content = _run_lengths(held.gram, own) < least[own]
        held = Held(*(column[content] for column in held))
        sizes += np.bincount(held.prompt, minlength=len(sizes))
        several = _run_lengths(held.gram) > 1
        held = Held(*(column[several] for column in held))
        _, number = np.unique(held.gram, return_inverse=True)
        found.append(Held(number + numbered, held.prompt))
        numbered += int(number.max(initial=-1)) + 1
    return Held(*(np.concatenate(columns) for columns in zip(*found, strict=True))), sizes


def _run_lengths(*columns: np.ndarray) -> np.ndarray:
    """[n] length of the run of equal rows that each row of ``columns`` [n] is in."""
    n = len(columns[0])
    new = np.ones(n, bool)
    new[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    starts = np.flatnonzero(new)
    return np.repeat(np.diff(starts, append=n), np.diff(starts, append=n))
