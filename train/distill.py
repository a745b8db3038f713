"""Distil a drafter: a small Llama that writes what a given target would write.

The target's own answers are the right data (a drafter is judged on them); plain text helps. Its top-k
log-probabilities are computed once and kept, then the drafter trains on them for as many minutes as it is given:
cross-entropy against the target's top-k and its best token. The token embedding starts as the truncated SVD of the
target's. Run the same command again and it goes on where it was; with more --minutes it goes on from its end.

    python train/distill.py --prompts mine.jsonl --text corpus.txt --minutes 60 --output runs/drafter
    python train/distill.py --target my/model --self-prompts 20000 --device cuda --output runs/mine
    python train/distill.py --prompts mine.jsonl --init decoding/drafter.gguf --lr 5e-4 --output runs/adapted

A second, larger drafter, for a Backoff of three models, grows from the first. A token costs 0.18 to 0.20 of the default
target's on a CPU (`decoding.cost.timing.measure`; 4 x 256: 0.11 to 0.12):

    python train/distill.py --init decoding/drafter.gguf --layers 8 --width 320 --lr 7e-4 --minutes 120 \\
        --self-prompts 4000 --text corpus.txt --output runs/drafter-large
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from train.common.cli import attempt


@dataclass
class Distill:
    """Distil a drafter from a target's own answers and from text."""

    prompts: list[str] = field(default_factory=list)
    """prompts (as for fit_policy) that the target answers first"""
    self_prompts: int = 0
    """prompts that the target writes itself (needs its chat template), and answers likewise"""
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.7])
    """temperatures at which the target answers every prompt"""
    answer_tokens: int = 150
    """tokens of such an answer"""
    answer_batch: int | None = None
    """prompts that are answered at a time (default: 96, on CUDA 256)"""
    generations: list[Path] = field(default_factory=list)
    """answers that the target has written already: jsonl with `prompt_ids` and `new_ids`"""
    text: list[Path] = field(default_factory=list)
    """plain text files; the target's predictions on them are learned too"""
    text_tokens: int = 400_000
    """at most this many tokens of text"""
    target: str | None = None
    """folder, hub id or .gguf of the target (default: the large model of the default pair)"""
    output: Path = Path("runs/drafter")
    """folder for the store, the checkpoint, progress.jsonl and the result"""
    export: Literal["gguf", "folder"] | None = None
    """one GGUF file (default where the target is one: its tokenizer is copied) or a transformers folder"""
    resume: bool = True
    """go on with the run in the output folder; --no-resume refuses a folder that holds one"""
    init: str | None = None
    """go on from this drafter with a fresh schedule: a run's checkpoint.safetensors, a folder, a .gguf or a hub id.
    Where a larger size is given, it grows to that first, and begins by writing the same"""
    layers: int | None = None
    """(default: 4, or those of --init)"""
    """(default: 4)"""
    width: int | None = None
    """(default: 256)"""
    heads: int | None = None
    """(default: width / 64)"""
    inner: int | None = None
    """width of the feed-forward layers (default: 4 * width)"""
    minutes: float = 60.0
    """training time, the target's passes not counted"""
    on_policy_rounds: int = 0
    """times, evenly spread over the minutes, that the drafter writes and the target labels what it wrote; each costs
    a pass of the target over its share of the data, which is why it is off until you have seen it win on your pair"""
    on_policy_share: float = 0.25
    """part of the training answers from a random place of which the drafter goes on in a round"""
    on_policy_tokens: int = 48
    """tokens that the drafter writes there, at temperature 1"""
    batch_tokens: int | None = None
    """tokens of a batch, padding included (default: 4096, on CUDA 65536)"""
    max_length: int = 384
    """tokens of a training sequence"""
    top_k: int = 8
    """log-probabilities of the target kept per position"""
    negatives: int | None = None
    """random tokens beside the batch's own top-k in the estimate of the softmax's normaliser; 0 for the whole
    vocabulary (default: 2048, on CUDA 0)"""
    lr: float = 1.5e-3
    hard: float = 0.4
    """weight of the target's best token as a label; the rest is its top-k distribution"""
    prompt_weight: float = 0.3
    """weight of positions inside prompts and text"""
    seed: int = 0
    device: str = "cpu"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """of the target, and of the matrix products of the drafter's training, whose weights stay float32 (auto: bfloat16
    on CUDA and on CPUs that multiply it in hardware)"""
    compile: bool = False
    """torch.compile the drafter: a minute at the start, worth it on CUDA"""
    threads: int | None = None
    """CPU threads (default: torch's choice)"""


def cli(argv: list[str] | None = None) -> int:
    """Run the command; 0 when it is done, 2 after one sentence about what was wrong with the input."""
    import tyro

    config = tyro.cli(Distill, args=argv, description=__doc__)
    from train.distillation.pipeline import run

    return attempt("distill", lambda: run(config), config.output)


if __name__ == "__main__":
    from train.distillation.allocator import keep_freed_memory

    keep_freed_memory()
    sys.exit(cli())
