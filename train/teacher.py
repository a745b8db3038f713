"""What the target says about a corpus, computed once: top-k log-probabilities at every position."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track


@dataclass(frozen=True, slots=True)
class Sequence:
    """Token ids of which the first ``prompt`` were given and the rest are the target's own (0: plain text)."""

    ids: list[int]
    prompt: int


def read_generations(path: Path, limit: int) -> list[Sequence]:
    """Read a jsonl of ``prompt_ids`` and ``new_ids``; sequences are cut to ``limit`` tokens."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Sequence((row["prompt_ids"] + row["new_ids"])[:limit], len(row["prompt_ids"]))
        for row in rows
        if len(row["prompt_ids"]) < limit
    ]


def read_text(path: Path, tokenizer, length: int) -> list[Sequence]:
    """Cut a text file into sequences of ``length`` tokens."""
    ids = tokenizer(path.read_text(encoding="utf-8"))["input_ids"]
    return [Sequence(ids[i : i + length], 0) for i in range(0, len(ids) - length + 1, length)]


def batches(sequences: list[Sequence], tokens: int) -> Iterator[list[int]]:
    """Indices of sequences of similar length, about ``tokens`` tokens (padding included) a batch."""
    batch: list[int] = []
    for index in sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids)):
        if batch and (len(batch) + 1) * len(sequences[index].ids) > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


class TopK:
    """The target's ``k`` best tokens and their log-probabilities at every position of every sequence, on disk.

    ``ids`` [positions, k] and ``logprobs`` [positions, k] (float16, normalised over the whole vocabulary) are
    memory maps; sequence ``i`` owns positions ``starts[i]:starts[i + 1]``. ``fill`` resumes after a kill: the batches
    that are done are listed in a file beside the arrays.
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

    @torch.inference_mode()
    def fill(self, model, tokens: int) -> None:
        """Run ``model`` over every batch that is not done yet."""
        done = set(self.done_file.read_text().split()) if self.done_file.exists() else set()
        todo = [batch for batch in batches(self.sequences, tokens) if str(batch[0]) not in done]
        for batch in track(todo, "target's top-k"):
            self._fill_batch(model, batch)
            with self.done_file.open("a") as file:
                file.write(f"{batch[0]}\n")
                os.fsync(file.fileno())

    def _fill_batch(self, model, batch: list[int]) -> None:
        ids = pad([self.sequences[i].ids for i in batch]).to(model.device)
        logits = model(ids, use_cache=False).logits.float()
        best, where = logits.topk(self.k)
        best = best - logits.logsumexp(-1, keepdim=True)
        for row, index in enumerate(batch):
            span = slice(self.starts[index], self.starts[index + 1])
            length = len(self.sequences[index].ids)
            self.ids[span] = where[row, :length].cpu().numpy()
            self.logprobs[span] = best[row, :length].cpu().numpy()
        self.ids.flush()
        self.logprobs.flush()


def pad(rows: list[list[int]]) -> torch.Tensor:
    """[rows, longest] right-padded with token 0: causal attention never looks at it from a real position."""
    out = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row)
    return out
