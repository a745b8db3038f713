"""What the forwards of a pair cost on this machine, kept from one process to the next."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from decoding.lm import LM

Table = dict[int, float]
"""Tokens read to seconds."""


def store(models: Sequence[LM], tables: Sequence[Table]) -> Path:
    """Keep the tables of ``models``, whole or not at all; returns the file."""
    path = place(models)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps({"of": _circumstances(models), "seconds": list(tables)}, indent=1))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def stored(models: Sequence[LM]) -> list[Table] | None:
    """The tables of ``models`` measured here earlier, under the same circumstances; None where there are none."""
    path = place(models)
    if not path.exists():
        return None
    try:
        tables = [{int(n): float(s) for n, s in table.items()} for table in json.loads(path.read_bytes())["seconds"]]
        if len(tables) != len(models) or not all(_sound(table) for table in tables):
            raise ValueError("no table of seconds per model")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logging.getLogger(__name__).warning("%s is not used, for it cannot be read: %s", path, error)
        return None
    return tables


def place(models: Sequence[LM]) -> Path:
    """The file for ``models`` on this machine, in the user's cache folder."""
    key = hashlib.sha256(json.dumps(_circumstances(models), sort_keys=True).encode()).hexdigest()[:16]
    cache = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"  # a relative one is to be ignored
    return folder / "two-model-decoding" / "cost" / f"{key}.json"


def processor() -> str:
    """The name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _circumstances(models: Sequence[LM]) -> dict:
    """Everything that a forward's seconds depend on."""
    return {
        "models": [lm.identity() | {"dtype": str(lm.model.dtype), "device": _device(lm.device)} for lm in models],
        "threads": torch.get_num_threads(),
        "host": platform.node(),
        "processor": processor(),
        "torch": torch.__version__,
    }


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _sound(table: Table) -> bool:
    return len(table) > 1 and all(n > 0 and 0 < s < math.inf for n, s in table.items())
