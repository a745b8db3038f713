"""The folder of a run remembers what made it, so that work of other settings is never mixed with it."""

from __future__ import annotations

import json
from pathlib import Path

from train.common import atomic


def ensure_same_run(path: Path, now: dict, config, otherwise: str) -> None:
    """``check``, then ``remember``."""
    check(path, now, config, otherwise)
    remember(path, now)


def check(path: Path, now: dict, config, otherwise: str) -> None:
    """Refuse to go on in a folder whose run was made by something else than ``now``, which ``remember`` wrote.

    ``now`` maps names to JSON values, those of ``config`` perhaps under "settings". Raises ValueError that names what
    differs, options as they are typed, and says what to do ``otherwise``.
    """
    if not path.exists():
        return
    try:
        before = _flat(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged; {otherwise}") from error
    differing = [_typed(name, config) for name, value in _flat(now).items() if before.get(name) != value]
    if differing:
        raise ValueError(f"{path.parent} holds a run with another {', '.join(differing)}; {otherwise}")


def remember(path: Path, now: dict) -> None:
    """Write what ``check`` compares, unless it is there; makes the folder, or clears it of what a kill left."""
    atomic.sweep(path.parent)
    if not path.exists():
        atomic.write_json(path, now)


def _flat(run: dict) -> dict:
    settings = run.get("settings", {})
    return settings | {name: value for name, value in run.items() if name != "settings"}


def _typed(name: str, config) -> str:
    return f"--{name.replace('_', '-')}" if hasattr(config, name) else name
