"""A uniform sample of rows that are read once, in pieces, and are more than memory holds."""

import hashlib
import math

import numpy as np

TEXT_ROWS = 2**20
"""rows of the whole texts that a search replays, 5,500 prompts of three texts of 64 tokens"""
FIT_ROWS = 2**18
"""rows that a policy of a dozen weights is fitted to"""
ROWS_STREAM = 0x726F7773
"""tells the keys of rows from what else a run draws with its seed: ``default_rng([0, 0])`` is ``default_rng(0)``"""


class Reservoir:
    """The rows of the smallest keys, in their order, at most ``most`` of them (bottom-k sampling, Cohen & Kaplan 2007).

    Where keys are drawn uniformly the sample is too, whatever pieces the rows come in. Rows of one key are kept or
    dropped together.
    """

    def __init__(self, most: int):
        self.most, self.below = most, math.inf
        self._parts: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        self._rows = self.seen = 0

    def add(self, columns: dict[str, np.ndarray], keys: np.ndarray) -> None:
        """Add rows, as columns [rows] and the key [rows] of each."""
        self.seen += len(keys)
        kept = keys < self.below
        if kept.any() or not self._parts:
            whole = kept.all()
            self._parts.append((keys[kept], {name: c if whole else c[kept] for name, c in columns.items()}))
            self._rows += int(kept.sum())
        if self._rows > 2 * self.most:  # seldom, so that a row is copied a few times at most
            self._cut()

    def take(self) -> dict[str, np.ndarray]:
        """The sample as columns, once something was added."""
        self._cut()
        return self._parts[0][1]

    def _cut(self) -> None:
        keys = np.concatenate([own for own, _ in self._parts])
        columns = {name: np.concatenate([part[name] for _, part in self._parts]) for name in self._parts[0][1]}
        if len(keys) > self.most:
            self.below = float(np.partition(keys, self.most)[self.most])
            kept = keys < self.below
            keys, columns = keys[kept], {name: column[kept] for name, column in columns.items()}
        self._parts, self._rows = [(keys, columns)], len(keys)


def prompt_keys(prompts: np.ndarray, seed: int) -> np.ndarray:
    """[rows] keys in [0, 1) that are equal where the ids ``prompts`` [rows] are: a sample is of whole prompts."""
    starts = np.flatnonzero(np.append(True, prompts[1:] != prompts[:-1]))[: len(prompts)]
    keys = [_key(f"{seed} {name}") for name in prompts[starts].tolist()]
    return np.repeat(keys, np.diff(starts, append=len(prompts)))


def _key(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48


def row_keys(rows: int, seed: int, shard: int) -> np.ndarray:
    """[rows] keys in [0, 1) of the rows of a shard."""
    return np.random.default_rng([seed, shard, ROWS_STREAM]).random(rows)
