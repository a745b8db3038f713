"""The two files of a policy: JSON for people to read, and safetensors beside it for long weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from policies.storage.atomic import write as write_atomically
from policies.storage.documents import FileError, parse, read_bytes, sealed, show, verified

AGAIN = "save the policy again"
GIVE = "give the path of a saved policy.json"


class PolicyError(ValueError):
    """A policy file that cannot be used; the message is one sentence: the file, the fault and the remedy."""


def write(path: Path, document: dict, tensors: Mapping[str, Tensor]) -> None:
    """Write ``document``, and ``tensors`` beside it if there are any; a reader never sees half a file.

    The JSON holds the tensors' sha256 and is replaced last, so the next load notices a crash in between.
    PolicyError for a name that does not end in .json, and for values that JSON does not take.
    """
    if path.suffix != ".json":
        raise PolicyError(f"{path}: not written, because of its name; it must end in .json")
    if tensors:
        blob = safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        beside = path.with_suffix(".safetensors")
        document = document | {"tensors": {"file": beside.name, "sha256": hashlib.sha256(blob).hexdigest()}}
    try:
        text = json.dumps(sealed(document), indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PolicyError(
            f"{path}: not written, because {error}; JSON takes finite numbers, strings, lists and dicts"
        ) from error
    if tensors:
        write_atomically(beside, blob)
    write_atomically(path, (text + "\n").encode())


def read(path: Path) -> dict:
    """The JSON object at ``path``, its checksum not compared yet (``verify``), so that what is wrong is named first.

    PolicyError for an unreadable file, NaN, Infinity and anything but an object.
    """
    try:
        document = parse(read_bytes(path, GIVE), path, AGAIN)
        json.dumps(document, allow_nan=False)
    except FileError as error:
        raise PolicyError(str(error)) from error
    except ValueError as error:
        raise PolicyError(f"{path}: it is not valid JSON ({error}); {AGAIN}") from error
    return document


def verify(path: Path, document: dict) -> None:
    """PolicyError when ``document``, read from ``path``, was changed after it was saved."""
    try:
        verified(document, path, f"{AGAIN}, or delete its checksum if you mean the change")
    except FileError as error:
        raise PolicyError(str(error)) from error


def read_tensors(path: Path, entry: Any) -> dict[str, Tensor]:
    """The tensors of the file that ``entry``, the ``tensors`` field of the JSON at ``path``, names; {} for None."""
    if entry is None:
        return {}
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("file"), str)
        or not isinstance(entry.get("sha256"), str)
    ):
        raise PolicyError(f"{path}: 'tensors' is {show(entry)}; it must name a file and its sha256")
    beside = path.with_name(Path(entry["file"]).name or "-")  # never outside the folder of the JSON
    try:
        blob = read_bytes(beside, "copy both")
    except ValueError as error:
        raise PolicyError(f"{path}: needs {show(entry['file'])} beside it, which cannot be read; copy both") from error
    if hashlib.sha256(blob).hexdigest() != entry["sha256"]:
        raise PolicyError(f"{path}: {beside.name} is not the file it was saved with (sha256 differs); copy both again")
    try:
        return safetensors.torch.load(blob)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise PolicyError(
            f"{path}: {beside.name} is not a safetensors file ({error}); save the policy again"
        ) from error


def short(value: float | list) -> float | list:
    """The shortest decimal that is the same float32, so that 0.4 is written 0.4; also of each number in a list."""
    return [short(item) for item in value] if isinstance(value, list) else float(str(np.float32(value)))


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that float32 can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= float(np.finfo(np.float32).max)  # also False for NaN, and no overflow for a huge integer
