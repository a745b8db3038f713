"""A training run in one safetensors file: weights, optimizer state and progress."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from policies.storage.atomic import replacing


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
    tensors = {}
    for name, weight in model.named_parameters():
        tensors[f"model.{name}"] = weight.detach().contiguous()
        for key, value in optimizer.state[weight].items():
            tensors[f"optimizer.{key}.{name}"] = value.contiguous()
    about = {"progress": json.dumps(asdict(progress)), "config": model.config.to_json_string()}
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, metadata=about)


def load(path: Path, model, optimizer: torch.optim.Optimizer) -> Progress:
    """Fill ``model`` and ``optimizer`` from a checkpoint of ``save``."""
    load_weights(path, model)
    names = dict(model.named_parameters())
    with safe_open(path, "pt", device=str(model.device)) as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            kind, _, rest = key.partition(".")
            if kind == "optimizer":
                state, _, name = rest.partition(".")
                optimizer.state[names[name]][state] = file.get_tensor(key)
        return Progress(**json.loads(file.metadata()["progress"]))


@torch.no_grad()
def load_weights(path: Path, model) -> None:
    """Fill ``model`` with the weights of a checkpoint."""
    with safe_open(path, "pt") as file:
        for name, weight in model.named_parameters():
            weight.copy_(file.get_tensor(f"model.{name}"))
