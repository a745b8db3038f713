"""A tiny target, prompts for it, and the command that distils it in seconds."""

from pathlib import Path

import numpy as np
from tiny_models import tiny, words

from train.distill import Distill


def make_target(folder: Path, template: str | None = None) -> Path:
    """A random model of 37 words with a tokenizer, saved in ``folder``/target."""
    tokenizer = words()
    tokenizer.chat_template = template
    tiny(seed=3, layers=1).model.save_pretrained(folder / "target")
    tokenizer.save_pretrained(folder / "target")
    return folder / "target"


def make_prompts(folder: Path, count: int = 60) -> Path:
    rng = np.random.default_rng(0)
    lines = [" ".join(f"w{i}" for i in rng.integers(3, 37, 6)) for _ in range(count)]
    (folder / "prompts.txt").write_text("\n".join(lines))
    return folder / "prompts.txt"


def command(folder: Path, output: str, minutes: float, *more: str) -> list[str]:
    """Arguments of ``train/distill.py`` for the target and the prompts in ``folder``."""
    size = "" if "--init" in more else "--layers 1 --width 32 --heads 4 --inner 64"
    line = (
        f"--target {folder / 'target'} --prompts {folder / 'prompts.txt'} --output {folder / output} {size} "
        f"--minutes {minutes} --answer-tokens 12 --batch-tokens 256 --max-length 64 --negatives 4 --lr 0.01"
    )
    return [*line.split(), *more]


def settings(folder: Path, **changes) -> Distill:
    """Resolved settings for a ``Trainer`` of its own."""
    given = {"layers": 1, "width": 32, "heads": 4, "inner": 64, "lr": 0.01, "batch_tokens": 512, "negatives": 16}
    return Distill(output=folder, dtype="float32", **(given | changes))
