"""The target's answers to prompts, and its best tokens at every position, in shards: what a drafter learns from."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decoding import Sampling
from policies.storage import atomic, documents
from train.common.generations import answers
from train.data.prompts import Prompt
from train.distillation.batches import pad, real_positions
from train.distillation.chunked_logits import logits_in_chunks
from train.workers.pair import Pair


class AnswerShards:
    """Makes the shards of ``answers.write_generations``: a batch of answers."""

    def __init__(self, pair: Pair, settings: dict[str, Any], decoders: dict[str, Any]):
        self.target, self.new = pair.models[-1], settings["max_new_tokens"]
        self.sampling = Sampling(**settings["sampling"])

    def __call__(self, task: dict[str, Any], path: Path) -> None:
        prompts = [Prompt.of(one) for one in task["prompts"]]
        # Row r draws with seed + r.
        documents.write(path, {"answers": answers(self.target, prompts, self.new, self.sampling, task["seed"])})


class LabelShards:
    """Makes the shards of ``TopK.fill``: ids and log-probabilities [positions, k] of a batch of sequences."""

    def __init__(self, pair: Pair, settings: dict[str, Any], decoders: dict[str, Any]):
        self.model, self.k = pair.models[-1].model, settings["k"]

    @torch.inference_mode()
    def __call__(self, task: dict[str, Any], path: Path) -> None:
        rows = task["sequences"]
        logits = logits_in_chunks(self.model, pad(rows).to(self.model.device), real_positions(rows))
        found = zip(*map(self._top, logits), strict=True)
        logprobs, ids = (torch.cat(part).cpu().numpy() for part in found)
        file = BytesIO()
        np.savez(file, ids=ids.astype(np.int32), logprobs=logprobs)
        atomic.write(path, file.getvalue())

    def _top(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = logits.float()
        best, where = logits.topk(self.k)
        return best - logits.logsumexp(-1, keepdim=True), where


def read_labels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(token ids, log-probabilities) of a shard of ``LabelShards``."""
    with np.load(path, allow_pickle=False) as found:
        return found["ids"], found["logprobs"]
