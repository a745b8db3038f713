"""Distil a drafter: a small Llama that predicts what a given target writes.

The data are the target's own answers, and plain text if there is any. The target's top-k log-probabilities on them are
computed once and kept. Then the drafter trains for the given minutes, with cross-entropy to the target's top-k
distribution and to its best token. Its token embedding starts as the truncated SVD of the target's. The same command
continues a stopped run, and with more --minutes a finished one.

    python train/distill.py --prompts mine.jsonl --text corpus.txt --minutes 60 --output runs/drafter
    python train/distill.py --target my/model --self-prompts 20000 --device cuda --output runs/mine
    python train/distill.py --prompts mine.jsonl --init decoding/drafter.gguf --lr 5e-4 --output runs/adapted

A larger drafter, for a Backoff of three models, grows from the first. On a CPU its token costs 0.18 to 0.20 of the
default target's (4 layers of width 256: 0.11 to 0.12):

    python train/distill.py --init decoding/drafter.gguf --layers 8 --width 320 --lr 7e-4 --minutes 120 \\
        --self-prompts 4000 --text corpus.txt --output runs/drafter-large
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from decoding.cli.dtypes import OwnDtype
from decoding.cli.generation_config import IgnoredSettings
from train.common.cli import attempt, checked_options
from train.data.options import PromptOptions, Reading


@dataclass
class Distill:
    """Distil a drafter from a target's own answers and from plain text."""

    prompts: list[str] = field(default_factory=list)
    """prompts (as for fit_policy) that the target answers"""
    self_prompts: int = 0
    """number of prompts that the target writes itself, with its chat template, and answers"""
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.7])
    """temperatures at which the target answers every prompt"""
    answer_tokens: int = 150
    """longest answer, in tokens"""
    answer_batch: int | None = None
    """prompts in a batch of answers (default: 96, on CUDA 256)"""
    generations: list[Path] = field(default_factory=list)
    """files of answers that the target has already written: jsonl with `prompt_ids` and `new_ids`"""
    text: list[Path] = field(default_factory=list)
    """plain text files; the drafter also learns the target's predictions on them"""
    text_tokens: int = 400_000
    """at most this many tokens of text"""
    target: str | None = None
    """folder, hub id or .gguf of the target (default: the large model of the default pair)"""
    output: Path = Path("runs/drafter")
    """folder for the target's log-probabilities, the checkpoint, progress.jsonl and the drafter"""
    export: Literal["gguf", "folder"] | None = None
    """one GGUF file with the target's tokenizer (default for a target in GGUF) or a transformers folder"""
    resume: bool = True
    """continue the run in the output folder; --no-resume refuses a folder that holds one"""
    init: str | None = None
    """drafter to start from, with a fresh schedule: a run's checkpoint.safetensors, a folder, a .gguf or a hub id;
    a larger size grows it without changing its predictions"""
    layers: int | None = None
    """number of layers (default: 4, or that of --init)"""
    width: int | None = None
    """hidden size (default: 256, or that of --init)"""
    heads: int | None = None
    """attention heads (default: width / 64, or heads as wide as those of --init)"""
    inner: int | None = None
    """width of the feed-forward layers (default: 4 * width, or in proportion to --init)"""
    minutes: float = 60.0
    """training time, without the target's passes"""
    on_policy_rounds: int = 0
    """number of rounds, evenly spread over the minutes, in which the drafter writes and the target labels its text;
    a round costs a pass of the target over its share of the data"""
    on_policy_share: float = 0.25
    """share of the training answers that the drafter continues from a random place in a round"""
    on_policy_tokens: int = 48
    """tokens of such a continuation, drawn at temperature 1"""
    batch_tokens: int | None = None
    """tokens of a training batch, with padding (default: 4096, on CUDA 65536)"""
    max_length: int = 384
    """longest training sequence, in tokens"""
    top_k: int = 8
    """log-probabilities of the target kept per position"""
    negatives: int | None = None
    """random tokens, beside the batch's own top-k, that estimate the softmax's normaliser; 0 for the whole vocabulary
    (default: 2048, on CUDA 0)"""
    lr: float = 1.5e-3
    """highest learning rate"""
    hard: float = 0.4
    """weight of the target's best token as a label; its top-k distribution has the rest"""
    prompt_weight: float = 0.3
    """weight of positions in prompts and plain text; answers have 1"""
    seed: int = 0
    device: str = "cpu"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """dtype of the target and of the drafter's matrix products; its weights are float32 (auto: bfloat16 on CUDA and on
    CPUs that multiply it in hardware)"""
    ignore_generation_config: IgnoredSettings = ""
    target_dtype: OwnDtype = None
    """dtype of the target's weights alone, such as int4"""
    compile: bool = False
    """compile the drafter with torch.compile: takes a minute at the start, worth it on CUDA"""
    threads: int | None = None
    """CPU threads (default: torch's choice)"""
    workers: str | None = None
    """who makes the target's answers and labels, as train/fit_policy.py takes it (default: this process)"""
    reading: Reading = field(default_factory=PromptOptions)


def cli(argv: list[str] | None = None) -> int:
    """Run the command; 0 when it is done, 2 after one sentence about what was wrong with the input."""
    import tyro

    config = tyro.cli(Distill, args=argv, description=__doc__)
    from train.distillation.pipeline import run

    return attempt("distill", lambda: run(checked_options(config)), config.output)


if __name__ == "__main__":
    from train.distillation.allocator import keep_freed_memory

    keep_freed_memory()
    sys.exit(cli())
