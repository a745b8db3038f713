"""What a pair costs on this machine, kept from one process to the next."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from decoding.cost.timing import PairCosts, Table
from decoding.models.lm import LM

FORMAT = 2


def store(models: Sequence[LM], costs: PairCosts) -> Path:
    """Keep what ``models`` cost, whole or not at all; returns the file."""
    path = place(models)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps({"of": _circumstances(models), "seconds": asdict(costs)}, indent=1))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def stored(models: Sequence[LM]) -> PairCosts | None:
    """What ``models`` cost, measured here earlier under the same circumstances; None where it was not."""
    path = place(models)
    if not path.exists():
        return None
    try:
        return _read(json.loads(path.read_bytes())["seconds"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logging.getLogger(__name__).warning("%s is not used, for it cannot be read: %s", path, error)
        return None


def _read(found: dict) -> PairCosts:
    """ValueError and others where it is not what ``store`` writes."""
    tables = tuple({int(n): float(s) for n, s in table.items()} for table in found.pop("forwards"))
    costs = PairCosts(tables, tuple(map(float, found.pop("cached"))), **{name: float(s) for name, s in found.items()})
    if len(tables) != 2 or not all(map(_sound, tables)):
        raise ValueError("no table of seconds per model")
    if len(costs.cached) != 2 or not all(0 <= s < math.inf for s in (*costs.cached, *found.values())):
        raise ValueError("seconds that are not")
    return costs


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
        "format": FORMAT,
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
