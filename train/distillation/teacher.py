"""The target's labels of a corpus, computed once: top-k log-probabilities at every position."""

from __future__ import annotations

import hashlib
import math
import os
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from policies.storage.atomic import naming
from policies.storage.documents import FileError
from train.common.atomic import append_rows, read_rows
from train.common.progress import track
from train.common.rows import LabelledRow
from train.distillation.batches import Sequence, batches, pad, real_positions

ANEW = "delete the folder it is in, and the target labels its texts again"
CHUNK = 4096
"""positions whose logits over the whole vocabulary are in memory at a time"""


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

    @torch.inference_mode()
    def fill(self, model, tokens: int) -> None:
        """Run ``model`` over every unfinished sequence, ``tokens`` tokens at a time.

        FileError when labels of finished ones are not what was written.
        """
        done = self._done()
        todo = [i for i in range(len(self.sequences)) if i not in done]
        chosen = [[todo[i] for i in batch] for batch in batches([self.sequences[i] for i in todo], tokens)]
        for batch in track(chosen, "target's top-k"):
            self._fill_batch(model, batch)
            append_rows(self.done_file, [{"sequences": batch, "sha256": self._checksum(batch)}])

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

    def _fill_batch(self, model, batch: list[int]) -> None:
        rows = [self.sequences[i].ids for i in batch]
        logits = logits_in_chunks(model, pad(rows).to(model.device), real_positions(rows), CHUNK)
        found = zip(*map(self._top, logits), strict=True)
        best, where = (torch.cat(part).cpu().numpy() for part in found)
        span = np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in batch])
        self.ids[span], self.logprobs[span] = where, best
        self.ids.flush()
        self.logprobs.flush()

    def _top(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = logits.float()
        best, where = logits.topk(self.k)
        return best - logits.logsumexp(-1, keepdim=True), where


def _reserve(path: Path, size: int) -> None:
    """Give ``path`` the bytes on disk that it lacks: a full disk is an OSError here, but kills who writes to a map."""
    with path.open("ab") as file:
        if hasattr(os, "posix_fallocate") and size:  # not on macOS
            os.posix_fallocate(file.fileno(), 0, size)


def logits_in_chunks(model, ids: torch.Tensor, where: torch.Tensor, chunk: int) -> Iterator[torch.Tensor]:
    """Logits [n, vocab], n <= ``chunk``, of the model's own forward of ``ids`` [rows, longest] at ``where`` [m].

    ``where`` are positions in the flattened ``ids``. Architectures cap or scale what the head gives, so their forward
    calls it here: once over ``ids``, to take the hidden states that enter the head; then over one token per chunk,
    in place of which the head reads the hidden states of the chunk.
    """
    head, entered = model.get_output_embeddings(), []

    def take(_, inputs):
        entered.append(inputs[0])
        return inputs[0][:1, :1]

    with head.register_forward_pre_hook(take):
        model(ids, use_cache=False)
    hidden = entered[0].flatten(0, 1)
    for part in hidden[where.to(hidden.device)].split(chunk):
        with head.register_forward_pre_hook(lambda _, inputs, part=part: part[None]):
            logits = model(ids[:1, :1], use_cache=False).logits[0]
        yield logits


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
