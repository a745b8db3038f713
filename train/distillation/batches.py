"""Token sequences, and batches of them as tensors."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True, slots=True)
class Sequence:
    """Token ids: the first ``prompt`` are a prompt and the rest its answer; ``prompt`` 0 is plain text."""

    ids: list[int]
    prompt: int

    @property
    def first(self) -> int:
        """The position whose next token is the first of the answer."""
        return max(0, self.prompt - 1)


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded sequences and, for their ``m`` real positions, the target's predictions of the next token."""

    ids: Tensor  # [rows, longest] token ids
    where: Tensor  # [m] indices of the real positions in the flattened [rows * longest]
    labels: Tensor  # [m, k] the target's best tokens, best first
    probabilities: Tensor  # [m, k] the target's probabilities of ``labels``, renormalised to sum to 1
    weights: Tensor  # [m] 1 in answers, ``prompt_weight`` in prompts and plain text


def batches(sequences: list[Sequence], tokens: int) -> Iterator[list[int]]:
    """Indices of sequences of similar length, about ``tokens`` tokens (with padding) per batch."""
    batch: list[int] = []
    for index in sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids)):
        if batch and (len(batch) + 1) * len(sequences[index].ids) > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pad(rows: list[list[int]]) -> Tensor:
    """[rows, longest] right-padded with token 0, which real positions never attend to."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def real_positions(rows: list[list[int]]) -> Tensor:
    """[m] indices of the tokens of ``rows`` in the flattened ``pad(rows)``."""
    longest = max(map(len, rows))
    return torch.cat([torch.arange(r * longest, r * longest + len(row)) for r, row in enumerate(rows)])


def collate(store, indices: list[int], prompt_weight: float, device: torch.device) -> Batch:
    """The sequences ``indices`` of ``store`` (``TopK`` or ``JoinedTopK``) on ``device``, copied asynchronously."""
    sequences = [store.sequences[i] for i in indices]
    rows = [s.ids for s in sequences]
    tokens, logprobs = (np.concatenate(part) for part in zip(*map(store.labels, indices), strict=True))
    tensors = (
        pad(rows),
        real_positions(rows),
        torch.from_numpy(tokens.astype(np.int64)),
        torch.from_numpy(logprobs.astype(np.float32)).softmax(-1),
        torch.cat([_weights(s, prompt_weight) for s in sequences]),
    )
    if device.type == "cuda":  # copies are asynchronous from pinned memory only
        tensors = [t.pin_memory() for t in tensors]
    return Batch(*(t.to(device, non_blocking=True) for t in tensors))


def _weights(sequence: Sequence, prompt_weight: float) -> Tensor:
    weights = torch.full((len(sequence.ids),), prompt_weight)
    if sequence.prompt:
        weights[sequence.first :] = 1.0
    return weights
