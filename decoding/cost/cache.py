"""Costs of models as JSON files: those of a run in its folder, those of any pair in the user's cache folder.

A file holds the checksum of its values, as ``policies.storage.documents`` has it, which this package may not import.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import stat
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from decoding.cost.costs import ModelCosts
from decoding.models.lm import LM

FORMAT = 3
LARGEST = 2**24  # bytes of a file
LONGEST = 86_400.0  # seconds; no forward takes a day, and sums of larger numbers overflow


def write(path: Path, models: Sequence[LM], costs: ModelCosts) -> None:
    """Write what ``models`` cost, whole or not at all; makes missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        document = {"of": _circumstances(models), "seconds": asdict(costs)}
        temporary.write_text(json.dumps(document | {"checksum": _checksum(document)}, indent=1))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> ModelCosts:
    """The costs in ``path``. Raises OSError, and ValueError with one sentence for what ``write`` does not write.

    A file without a checksum is of an earlier version, and taken as it is.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:  # a pipe would be waited for
            raise ValueError("no such file")
        document = json.loads(path.read_bytes())
        if document.pop("checksum", None) not in (None, _checksum(document)) or document["of"]["format"] != FORMAT:
            raise ValueError("changed, or of another format")
        return _checked(document["seconds"])
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{path} does not hold costs in format {FORMAT} as they were written; delete it to measure them again"
        ) from error


def store(models: Sequence[LM], costs: ModelCosts) -> Path:
    """Write what ``models`` cost into the user's cache folder; returns the file."""
    path = cache_file(models)
    write(path, models, costs)
    return path


def stored(models: Sequence[LM]) -> ModelCosts | None:
    """The costs of ``models`` stored under the same circumstances; None where there are none, or none readable."""
    path = cache_file(models)
    if not path.exists():
        return None
    try:
        return read(path)
    except (OSError, ValueError) as error:
        logging.getLogger(__name__).warning("the costs of this pair are unknown: %s", error)
        return None


def cache_file(models: Sequence[LM]) -> Path:
    """The file for ``models`` on this machine, in the user's cache folder."""
    key = hashlib.sha256(json.dumps(_circumstances(models), sort_keys=True).encode()).hexdigest()[:16]
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a relative path.
    folder = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
    return folder / "two-model-decoding" / "cost" / f"{key}.json"


def processor() -> str:
    """The name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _circumstances(models: Sequence[LM]) -> dict:
    """Everything that the seconds of a forward depend on."""
    return {
        "format": FORMAT,
        "models": [lm.identity() | {"device": _device(lm.device)} for lm in models],
        "threads": torch.get_num_threads(),
        "host": platform.node(),
        "processor": processor(),
        "torch": torch.__version__,
    }


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _checksum(document: dict) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()[:16]


def _checked(found: dict) -> ModelCosts:
    """ValueError, TypeError and others for what is no ``asdict(ModelCosts)`` of finite, positive seconds."""
    tables = tuple({int(n): float(s) for n, s in table.items()} for table in found.pop("tables"))
    cached, batch = tuple(map(float, found.pop("cached"))), int(found.pop("batch", 1))
    costs = ModelCosts(tables, cached, batch=batch, **{name: float(s) for name, s in found.items()})
    forwards = [s for table in tables for s in table.values()]
    more = [*cached, costs.token_overhead, costs.round_overhead, costs.draft_overhead, costs.precision]
    sound = [
        len(tables) > 1 and len(cached) in (0, len(tables)),
        all(len(table) > 1 and all(0 < n < 2**31 for n in table) for table in tables),
        0 < batch < 2**15,
        all(0 < s < LONGEST for s in forwards) and all(0 <= s < LONGEST for s in more),
    ]
    if not all(sound):
        raise ValueError("no such costs")
    return costs
