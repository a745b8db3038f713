"""Versions of engines: which were there at export, which are there now."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def recorded(engines: dict[str, tuple[str, str]]) -> dict[str, dict[str, str | None]]:
    """For the manifest: the range that files were written for, and what was installed then."""
    return {name: {"from": low, "before": high, "installed": installed(name)} for name, (low, high) in engines.items()}


def out_of_range(engines: dict[str, dict[str, Any]]) -> str | None:
    """A sentence about the first engine that is installed now in a version outside its range; None when all fit."""
    for name, wanted in engines.items():
        now = installed(name)
        if now is not None and not _numbers(wanted["from"]) <= _numbers(now) < _numbers(wanted["before"]):
            return f"it was written for {name} {wanted['from']} up to {wanted['before']}, and {now} is installed"
    return None


def _numbers(text: str) -> tuple[int, ...]:
    """The release part of a version, as it compares."""
    return tuple(int(part) for part in re.match(r"\d+(\.\d+)*", text)[0].split("."))
