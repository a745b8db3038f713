"""A tiny pair of saved models, prompts for it, and the main job as a subprocess."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from saved_models import save, word_tokenizer
from tiny_models import nudged, tiny

from decoding import LM
from decoding.cost import timing
from train.data.prompts import Prompt

ROOT = Path(__file__).parents[2]
ENV = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
FAST = {"trials": 12, "max_new_tokens": 12, "holdout": 0, "timed": 6, "wandb": "disabled", "threads": 1}


@contextmanager
def quick_timing():
    """Time forwards of toys for a moment, not until the other workers of a suite let a median be known well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "SPAN", 0.0)
        patch.setattr(timing, "POINT", 0.02)
        yield


def save_model(folder: Path, seed: int, layers: int, letter: str = "w") -> str:
    return save(folder, seed, letter, layers=layers)


def write_prompts(path: Path, count: int = 40) -> str:
    """Prompts of different words, in two families."""
    rows = [
        {
            "id": f"p{i}",
            "family": "even" if i % 2 == 0 else "odd",
            "prompt": " ".join(f"w{5 + (7 * i + i * j + j * j) % 32}" for j in range(2 + i % 5)) + f" w{5 + i % 32}",
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def save_toys(folder: Path, prompts: int) -> dict:
    """Options of the main job: a saved pair and its prompts, of which a run uses 30."""
    return {
        "small": save_model(folder / "small", seed=1, layers=1),
        "large": save_model(folder / "large", seed=2, layers=12),
        "prompts": write_prompts(folder / "prompts.jsonl", prompts),
        "limit": 30,
    }


def typed(options: dict) -> list[str]:
    """Options as they are typed."""
    return [str(x) for name, value in options.items() for x in (f"--{name.replace('_', '-')}", value)]


def command(*arguments) -> list[str]:
    return [sys.executable, str(ROOT / "train" / "fit_policy.py"), *map(str, arguments)]


def fit_policy(*arguments, cwd: Path) -> subprocess.CompletedProcess:
    """Run the job as a user would, elsewhere than in the repository, but for the time that its timing table takes."""
    python, *job = command(*arguments)
    quick = [python, str(ROOT / "tests" / "support" / "quick_timing.py"), *job]
    environment = ENV | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(quick, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def toy_prompts(count: int, seed: int = 0) -> list[Prompt]:
    """Prompts of the tiny vocabulary, of 2 to 6 tokens."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(2, 7, count)
    return [
        Prompt(f"p{i}", "default", f"g{i // 2}", "", tuple(draw.integers(3, 37, n).tolist()), None)
        for i, n in enumerate(lengths)
    ]


def toy_pair() -> tuple[LM, LM]:
    """A large model and one of its kind that agrees with it about half the time; they end some answers."""
    large = tiny(layers=2, seed=1, initializer_range=0.25)
    large.tokenizer = word_tokenizer()
    small = nudged(large, 0.35)
    small.tokenizer = large.tokenizer
    return small, large
