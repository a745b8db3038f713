"""Tensors of ours in one safetensors file, with text about them and the checksum of both."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from policies.storage.atomic import replacing
from policies.storage.documents import CHANGED, CHECKSUM, FileError


def write(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write ``path``, whole or not at all."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as unfinished:
        save_file(whole, unfinished, metadata={**about, CHECKSUM: _checksum(whole, about)})


def read(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, text about them) of a file that ``write`` wrote.

    FileError, which ends in ``remedy``, for anything else. A file without a checksum is of an earlier version, and
    taken as it is.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise FileError(path, "it is not a regular file", remedy)
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except OSError as error:
        raise FileError(path, f"it cannot be read ({error.strerror or error})", remedy) from error
    except (SafetensorError, RuntimeError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(path, f"it is not a safetensors file ({error})", remedy) from error
    expected = about.pop(CHECKSUM, None)
    if expected is not None and expected != _checksum(tensors, about):
        raise FileError(path, CHANGED, remedy)
    return tensors, about


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """16 hexadecimal digits: names, kinds, shapes and bytes of ``tensors`` [on the CPU], and ``about``."""
    digest = hashlib.sha256(json.dumps(sorted(about.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
