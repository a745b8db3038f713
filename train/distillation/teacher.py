"""What the target says about a corpus, computed once: top-k log-probabilities at every position."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from pathlib import Path

import numpy as np
import torch

from train.common.progress import track
from train.distillation.batches import Sequence, batches, pad, real_positions

CHUNK = 4096
"""positions whose logits over the whole vocabulary are in memory at a time"""


class TopK:
    """The target's ``k`` best tokens and their log-probabilities at every position of every sequence, on disk.

    ``ids`` [positions, k] and ``logprobs`` [positions, k] (float16, normalised over the whole vocabulary) are
    memory maps; sequence ``i`` owns positions ``starts[i]:starts[i + 1]``. ``fill`` resumes after a kill: the
    sequences that are done are listed in a file beside the arrays.
    """

    def __init__(self, folder: Path, sequences: list[Sequence], k: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.sequences, self.k = folder, sequences, k
        self.starts = np.cumsum([0] + [len(s.ids) for s in sequences])
        digest = hashlib.sha256(repr([s.ids for s in sequences]).encode()).hexdigest()[:16]
        self.done_file = folder / f"{digest}-{k}.done"
        self.ids = self._map(f"{digest}-{k}.ids", np.int32)
        self.logprobs = self._map(f"{digest}-{k}.logprobs", np.float16)

    def _map(self, name: str, dtype) -> np.memmap:
        path, shape = self.folder / name, (int(self.starts[-1]), self.k)
        return np.memmap(path, dtype, mode="r+" if path.exists() else "w+", shape=shape)

    def labels(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(token ids [n, k], log-probabilities [n, k]) of sequence ``index``."""
        span = slice(self.starts[index], self.starts[index + 1])
        return self.ids[span], self.logprobs[span]

    @torch.inference_mode()
    def fill(self, model, tokens: int) -> None:
        """Run ``model`` over every sequence that is not done yet, ``tokens`` tokens at a time."""
        done = set(self.done_file.read_text().split()) if self.done_file.exists() else set()
        todo = [i for i in range(len(self.sequences)) if str(i) not in done]
        chosen = [[todo[i] for i in batch] for batch in batches([self.sequences[i] for i in todo], tokens)]
        for batch in track(chosen, "target's top-k"):
            self._fill_batch(model, batch)
            with self.done_file.open("a") as file:
                file.write(" ".join(map(str, batch)) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def _fill_batch(self, model, batch: list[int]) -> None:
        rows = [self.sequences[i].ids for i in batch]
        hidden = model.model(pad(rows).to(model.device), use_cache=False).last_hidden_state
        parts = hidden.flatten(0, 1)[real_positions(rows).to(model.device)].split(CHUNK)
        found = zip(*(self._top(model.lm_head(part).float()) for part in parts), strict=True)
        best, where = (torch.cat(part).cpu().numpy() for part in found)
        span = np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in batch])
        self.ids[span], self.logprobs[span] = where, best
        self.ids.flush()
        self.logprobs.flush()

    def _top(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        best, where = logits.topk(self.k)
        return best - logits.logsumexp(-1, keepdim=True), where


class Union:
    """Several ``TopK`` as one: ``sequences`` and ``labels`` in the order of the stores."""

    def __init__(self, stores: list[TopK]):
        self.stores = stores
        self.sequences = [s for store in stores for s in store.sequences]
        self.starts = np.cumsum([0] + [len(store.sequences) for store in stores]).tolist()

    def labels(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """As ``TopK.labels``."""
        store = bisect_right(self.starts, index) - 1
        return self.stores[store].labels(index - self.starts[store])
