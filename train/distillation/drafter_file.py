"""Writes a trained drafter as one GGUF or a transformers folder, with notes on its training."""

import json
import os
from dataclasses import asdict
from pathlib import Path

from decoding.models.lm import LM
from policies.storage.atomic import naming
from train.common import atomic
from train.common.machine import machine
from train.distillation.gguf_file import write_gguf


def notes(config, target: LM, training_prompts: str, last: dict) -> dict[str, str]:
    """The notes stored with a drafter: target, quality, training prompts, settings and machine.

    training_prompts: the hashes of the prompts; last: the last line of ``progress.jsonl``.
    """
    measured = {name: last[name] for name in ("holdout_agreement", "accepted_at_length_4")}
    return {
        "target": target.name,
        **{name: f"{value:.4f}" for name, value in measured.items() if value is not None},
        "training_prompts": training_prompts,
        "settings": json.dumps(settings(config)),
        "trained_minutes": f"{last['minutes']:.1f}",
        "trained_tokens": str(last["tokens"]),
        "machine": json.dumps(machine(config.device, [config.dtype])),
    }


def settings(config) -> dict:
    """The settings of the training, without folders of the machine."""

    def bare(value):
        if isinstance(value, list):
            return [bare(item) for item in value]
        return Path(value).name if isinstance(value, Path) or os.path.isabs(str(value)) else value

    return {name: bare(value) for name, value in asdict(config).items()}


def export(model, target: LM, config, about: dict[str, str]) -> Path:
    """Write ``drafter.gguf``, with the tokenizer of the target's GGUF, or the folder ``drafter``; return its path."""
    if config.export == "gguf":
        path = config.output / "drafter.gguf"
        write_gguf(model, Path(config.target), path, "two-model drafter", about)
        return path
    path = config.output / "drafter"
    with naming(path):
        model.save_pretrained(path)
        target.tokenizer.save_pretrained(path)
    atomic.write_json(path / "distill.json", about)
    return path
