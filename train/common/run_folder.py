"""The folder of a run records what made it, so that work of other settings or versions is never mixed in."""

from pathlib import Path
from typing import Any

from policies.storage import documents
from policies.storage.atomic import sweep
from policies.storage.documents import FileError
from train.common import alone, atomic
from train.common.schema import checked
from train.common.settings import FitPolicy

FORMAT = 5  # of the JSON files that are read again; raised when one of them changes its meaning
GROUPS = ("dtypes", "reading", "drawing")
"""settings that hold options of their own"""
AGAIN = "run train/fit_policy.py again"


def ensure_same_run(path: Path, now: dict, config, otherwise: str) -> None:
    """``check``, then ``remember``; no other job may be at work in the folder, unless this one joins it."""
    joins = getattr(config, "join", False)
    check(path, now, config, otherwise)
    if not joins:
        alone.hold(path.parent)
        check(path, now, config, otherwise)  # another job may have been first
    remember(path, now, joins)


def check(path: Path, now: dict, config, otherwise: str) -> None:
    """Refuse to go on in a folder whose run was made by something else than ``now``, which ``remember`` wrote.

    ``now`` maps names to JSON values, those of ``config`` perhaps under "settings". Raises ValueError that names what
    differs, options as they are typed, and says what to do ``otherwise``.
    """
    if not path.exists():
        return
    found = read(path, otherwise)
    if not isinstance(found.get("settings", {}), dict):
        raise FileError(path, "its settings are no object", otherwise)
    before = _flat(found)
    differing = [_typed(name, config) for name, value in _flat(atomic.plain(now)).items() if before.get(name) != value]
    if differing:
        raise ValueError(f"{path.parent} holds a run with another {', '.join(differing)}; {otherwise}")


def remember(path: Path, now: dict, joins: bool = False) -> None:
    """Write what ``check`` compares, unless it is there; makes the folder, or clears it of what a kill left.

    ValueError where another job is at work in the folder, unless this one ``joins`` it.
    """
    if not joins:
        alone.hold(path.parent)
    sweep(path.parent)
    if not path.exists():
        write(path, now)


def write(path: Path, value: dict[str, Any]) -> None:
    """Write an object that ``read`` reads again; paths become text."""
    documents.write(path, {"format": FORMAT} | atomic.plain(value))


def read(path: Path, otherwise: str = AGAIN) -> dict[str, Any]:
    """The object that ``write`` wrote. FileError, which ends in ``otherwise``, for any other file."""
    value = documents.read(path, otherwise)
    written = value.pop("format", None)
    if written != FORMAT:
        raise FileError(path, "it was written by another version of this program", otherwise)
    return value


def recorded_date(path: Path, otherwise: str = AGAIN) -> str | None:
    """The date that the templates of the run in ``path`` print, if there is one. FileError for a damaged file."""
    date = _flat(read(path, otherwise)).get("date") if path.exists() else None
    return date if isinstance(date, str) else None


def recorded_dtypes(path: Path, otherwise: str = AGAIN) -> tuple[str | None, str | None]:
    """The dtypes of the small and the large model of the run in ``path``, if there is one. FileError as above."""
    found = _flat(read(path, otherwise)) if path.exists() else {}
    return found.get("small_dtype"), found.get("large_dtype")


def read_settings(folder: Path) -> FitPolicy:
    """The settings of the run in ``folder``; those that may change on resume are at their defaults."""
    path = folder / "run.json"
    if not path.exists():
        raise ValueError(f"{folder} has no run.json; give the folder of a finished run of train/fit_policy.py")
    return checked(FitPolicy, read(path).get("settings"), path, AGAIN)


def _flat(run: dict[str, Any]) -> dict[str, Any]:
    """Each setting under its own name, as it is typed, before all else."""
    flat = dict(run)
    for group in ("settings", *GROUPS):
        inner = flat.pop(group, {})
        flat = inner | flat if isinstance(inner, dict) else {group: inner} | flat
    return flat


def _typed(name: str, config) -> str:
    known = any(hasattr(some, name) for some in (config, *(getattr(config, group, None) for group in GROUPS)))
    return f"--{name.replace('_', '-')}" if known else name
