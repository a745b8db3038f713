"""A policy's two files: JSON for what a person reads, safetensors beside it for what is too long to read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor


class PolicyError(ValueError):
    """A policy file that cannot be used: one sentence with the file, what is wrong and what would be right."""


def write(path: Path, document: dict, tensors: Mapping[str, Tensor]) -> None:
    """Write ``document``, and ``tensors`` beside it when there are any; a reader never sees half a file.

    The JSON holds the tensors' sha256 and is replaced last, so a crash in between is noticed at the next load.
    """
    if path.suffix != ".json":
        raise PolicyError(f"{path}: not written, because of its name; it must end in .json")
    path.parent.mkdir(parents=True, exist_ok=True)
    if tensors:
        blob = safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        beside = path.with_suffix(".safetensors")
        document = document | {"tensors": {"file": beside.name, "sha256": hashlib.sha256(blob).hexdigest()}}
    try:
        text = json.dumps(document, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PolicyError(
            f"{path}: not written, because {error}; JSON takes finite numbers, strings, lists and dicts"
        ) from error
    if tensors:
        _replace(beside, blob)
    _replace(path, (text + "\n").encode())


def read(path: Path) -> dict:
    """The JSON document at ``path``; NaN, Infinity and anything but an object are refused."""
    try:
        document = json.loads(path.read_bytes().decode(), parse_constant=_refuse_constant)
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read ({error.strerror}); give the path of a saved policy.json") from error
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{path}: not valid JSON ({error}); save the policy again") from error
    if not isinstance(document, dict):
        raise PolicyError(f"{path}: holds {show(document)}; it must be a JSON object written by Policy.save")
    return document


def read_tensors(path: Path, entry: Any) -> dict[str, Tensor]:
    """The tensors that ``entry``, the ``tensors`` field of the JSON at ``path``, points to; none for None."""
    if entry is None:
        return {}
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("file"), str)
        or not isinstance(entry.get("sha256"), str)
    ):
        raise PolicyError(f"{path}: 'tensors' is {show(entry)}; it must name a file and its sha256")
    beside = path.with_name(Path(entry["file"]).name or "-")  # only ever beside the JSON, whatever the JSON says
    try:
        blob = beside.read_bytes()
    except (OSError, ValueError) as error:
        raise PolicyError(f"{path}: needs {show(entry['file'])} beside it, which cannot be read; copy both") from error
    if hashlib.sha256(blob).hexdigest() != entry["sha256"]:
        raise PolicyError(f"{path}: {beside.name} is not the file it was saved with (sha256 differs); copy both again")
    try:
        return safetensors.torch.load(blob)
    except (SafetensorError, KeyError, TypeError) as error:
        raise PolicyError(
            f"{path}: {beside.name} is not a safetensors file ({error}); save the policy again"
        ) from error


def short(value: float) -> float:
    """The shortest decimal that is the same float32, so that 0.4 is written 0.4."""
    return float(str(np.float32(value)))


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that float32 can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= float(np.finfo(np.float32).max)  # also False for NaN, and no overflow for a huge integer


def show(value: Any) -> str:
    """A value as an error message quotes it: one short line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
