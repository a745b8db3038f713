"""The model of a folder of safetensors with matrices of 4 or 8 bits, made tensor by tensor."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from decoding.kernels.quantized import multiplied, put, rounded
from decoding.models.empty_model import empty_model, fill
from decoding.models.sources import Source, shards


def read_rounded(source: Source, config, bits: int) -> nn.Module | None:
    """The model of ``config`` with its matrices in ``bits`` bits, all else in float32.

    At no time is more of the file in memory than one tensor. None where the files' names and shapes are not one to one
    those of the model: transformers renames the weights of some checkpoints and joins those of others (experts), and
    reports what is missing.
    """
    model = empty_model(config, torch.float32)
    files = {name: path for path in shards(source.folder) for name in _names(path)}
    wanted = {name: weight.shape for name, weight in [*model.named_parameters(), *_saved_buffers(model)]}
    if files.keys() != wanted.keys():
        return None
    matrices = {}
    for name, path in files.items():
        with safe_open(path, "pt") as file:  # opened anew for each: pages of a mapped file count as memory
            weight = file.get_tensor(name)
            if weight.shape != wanted[name]:
                return None
            if multiplied(model, name, weight.shape):
                matrices[name] = rounded(weight, bits)
            else:
                fill(model, name, weight.to(torch.float32, copy=True))
            del weight
    put(model, matrices)
    return model.eval()


def _names(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return list(file.keys())


def _saved_buffers(model: nn.Module):
    saved = model.state_dict().keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in saved]
