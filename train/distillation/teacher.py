"""The target's labels of a corpus, computed once: top-k log-probabilities at every position."""

from __future__ import annotations

import hashlib
import math
import os
from bisect import bisect_right
from pathlib import Path

import numpy as np

from decoding.models.lm import LM
from policies.storage.atomic import naming
from policies.storage.documents import FileError
from train.common.atomic import append_rows, read_rows
from train.common.rows import LabelledRow
from train.distillation.batches import Sequence, batches
from train.distillation.target_shards import read_labels
from train.workers.crew import ALONE, Crew
from train.workers.pair import Pair
from train.workers.stage import Stage

ANEW = "delete the folder it is in, and the target labels its texts again"


class TopK:
    """The target's ``k`` best tokens and their log-probabilities at every position of every sequence, on disk.

    ``ids`` [positions, k] and ``logprobs`` [positions, k] (float32, normalised over the whole vocabulary) are
    memory maps; sequence ``i`` owns positions ``starts[i]:starts[i + 1]``. A file beside the arrays lists the finished
    sequences with a checksum of their labels, so ``fill`` resumes after a kill.
    """

    def __init__(self, folder: Path, sequences: list[Sequence], k: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.sequences, self.k = folder, sequences, k
        self.starts = np.cumsum([0] + [len(s.ids) for s in sequences])
        digest = hashlib.sha256(repr([s.ids for s in sequences]).encode()).hexdigest()[:16]
        self.done_file = folder / f"{digest}-{k}.f32.jsonl"
        self.ids = self._map(f"{digest}-{k}.f32.ids", np.int32)
        self.logprobs = self._map(f"{digest}-{k}.f32.logprobs", np.float32)

    def _map(self, name: str, dtype) -> np.memmap:
        path, shape = self.folder / name, (int(self.starts[-1]), self.k)
        if os.path.lexists(path) and not path.is_file():
            raise FileError(path, "it is not a regular file", ANEW)
        with naming(path):
            _reserve(path, math.prod(shape) * np.dtype(dtype).itemsize)
        return np.memmap(path, dtype, mode="r+", shape=shape)

    def labels(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(token ids [n, k], log-probabilities [n, k]) of sequence ``index``."""
        span = slice(self.starts[index], self.starts[index + 1])
        return self.ids[span], self.logprobs[span]

    def fill(self, target: LM, tokens: int, crew: Crew = ALONE) -> None:
        """Label every unfinished sequence by ``target``, ``tokens`` tokens at a time.

        FileError when labels of finished ones are not what was written.
        """
        done = self._done()
        todo = [i for i in range(len(self.sequences)) if i not in done]
        chosen = [[todo[i] for i in batch] for batch in batches([self.sequences[i] for i in todo], tokens)]
        if not chosen:
            return
        tasks = {batch[0]: {"sequences": [list(self.sequences[i].ids) for i in batch]} for batch in chosen}
        of = {batch[0]: batch for batch in chosen}
        stage = Stage("labels", "target's top-k", self.folder, {"k": self.k}, tasks)
        for number, path in crew.made(stage, Pair([target])):
            batch = of[number]
            span = np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in batch])
            self.ids[span], self.logprobs[span] = read_labels(path)
            self.ids.flush()
            self.logprobs.flush()
            append_rows(self.done_file, [{"sequences": batch, "sha256": self._checksum(batch)}])
        crew.clear(self.folder)

    def _done(self) -> set[int]:
        """The numbers of the finished sequences."""
        done = set()
        for row in read_rows(self.done_file, LabelledRow):
            known = all(0 <= i < len(self.sequences) for i in row["sequences"])
            if not known or row["sha256"] != self._checksum(row["sequences"]):
                name = self.done_file.with_suffix("").name
                raise FileError(self.folder / name, "its labels were changed after they were written", ANEW)
            done.update(row["sequences"])
        return done

    def _checksum(self, some: list[int]) -> str:
        """Of the labels of the sequences ``some``."""
        parts = [np.ascontiguousarray(part) for i in some for part in self.labels(i)]
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


def _reserve(path: Path, size: int) -> None:
    """Give ``path`` the bytes on disk that it lacks: a full disk is an OSError here, but kills who writes to a map."""
    with path.open("ab") as file:
        if hasattr(os, "posix_fallocate") and size:  # not on macOS
            os.posix_fallocate(file.fileno(), 0, size)


class JoinedTopK:
    """Several ``TopK`` as one: ``sequences`` and ``labels`` in the order of ``stores``."""

    def __init__(self, stores: list[TopK]):
        self.stores = stores
        self.sequences = [s for store in stores for s in store.sequences]
        self.starts = np.cumsum([0] + [len(store.sequences) for store in stores]).tolist()

    def labels(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """As ``TopK.labels``."""
        store = bisect_right(self.starts, index) - 1
        return self.stores[store].labels(index - self.starts[store])
