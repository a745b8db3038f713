"""A trained drafter as files: one GGUF or a transformers folder, with notes on how it was made."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from decoding.models.lm import LM
from train.common import atomic
from train.common.machine import machine
from train.distillation.gguf_file import write_gguf


def notes(config, target: LM, training_prompts: str, last: dict) -> dict[str, str]:
    """What is stored with a drafter: its target, how good it is, what it was trained on, by what settings and where.

    last: the last line of ``progress.jsonl``; training_prompts: the hashes of the prompts.
    """
    measured = {name: last[name] for name in ("heldout_agreement", "accepted_at_length_4")}
    return {
        "target": target.name,
        **{name: f"{value:.4f}" for name, value in measured.items() if value is not None},
        "training_prompts": training_prompts,
        "settings": json.dumps(settings(config)),
        "trained_minutes": f"{last['minutes']:.1f}",
        "trained_tokens": str(last["tokens"]),
        "machine": json.dumps(machine(config)),
    }


def settings(config) -> dict:
    """What made the drafter, without the folders of the machine that did."""

    def bare(value):
        if isinstance(value, list):
            return [bare(item) for item in value]
        return Path(value).name if isinstance(value, Path) or os.path.isabs(str(value)) else value

    return {name: bare(value) for name, value in asdict(config).items()}


def export(model, target: LM, config, about: dict[str, str]) -> Path:
    """Write ``drafter.gguf`` (with the tokenizer metadata of the target's GGUF) or the folder ``drafter``; its path."""
    if config.export == "gguf":
        path = config.output / "drafter.gguf"
        write_gguf(model, Path(config.target), path, "two-model drafter", about)
        return path
    path = config.output / "drafter"
    model.save_pretrained(path)
    target.tokenizer.save_pretrained(path)
    atomic.write_json(path / "distill.json", about)
    return path
