"""A training run in one safetensors file: weights, optimizer state and progress."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from policies.storage import tensors
from policies.storage.documents import FileError
from train.common.schema import checked

ANEW = "delete it to train from the start"


@dataclass
class Progress:
    """The progress of a training run."""

    elapsed: float = 0.0  # seconds of training
    tokens: int = 0
    epoch: int = 0
    batch: int = 0  # finished batches of this epoch
    rounds: int = 0  # finished on-policy rounds


def save(path: Path, model, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write ``path``, whole or not at all; tied weights are written once."""
    found = {}
    for name, weight in model.named_parameters():
        found[f"model.{name}"] = weight
        for key, value in optimizer.state[weight].items():
            found[f"optimizer.{key}.{name}"] = value
    about = {"progress": json.dumps(asdict(progress)), "config": model.config.to_json_string()}
    tensors.write(path, found, about)


def load(path: Path, model, optimizer: torch.optim.Optimizer) -> Progress:
    """Fill ``model`` and ``optimizer`` from a checkpoint of ``save``. FileError for any other file."""
    found, about = tensors.read(path, ANEW)
    fill(path, found, model)
    names = dict(model.named_parameters())
    for key, value in found.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            state, _, name = rest.partition(".")
            if name not in names:
                raise FileError(path, f"it is of a drafter that has a weight {name}", ANEW)
            optimizer.state[names[name]][state] = value.to("cpu" if state == "step" else names[name].device)
    return checked(Progress, _json(path, about.get("progress")), path, ANEW)


@torch.no_grad()
def fill(path: Path, found: dict[str, Tensor], model) -> None:
    """Fill ``model`` with the weights among the tensors ``found`` in ``path``. FileError when some are not there."""
    for name, weight in model.named_parameters():
        value = found.get(f"model.{name}")
        if value is None or value.shape != weight.shape:
            raise FileError(path, f"it lacks the weight {name}, or has it of another shape", ANEW)
        weight.copy_(value)


def _json(path: Path, text: str | None):
    try:
        return json.loads(text or "")
    except ValueError as error:
        raise FileError(path, "it says nothing of its progress", ANEW) from error
