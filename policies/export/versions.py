"""Versions of engines: those installed at export, and those installed now."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.version import Version


def installed(distribution: str) -> str | None:
    """The version of ``distribution``; None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def recorded(engines: dict[str, tuple[str, str]]) -> dict[str, dict[str, str | None]]:
    """For the manifest: the range that the files were written for, and the version that was installed."""
    return {name: {"from": low, "before": high, "installed": installed(name)} for name, (low, high) in engines.items()}


def out_of_range(engines: dict[str, dict[str, Any]]) -> str | None:
    """A sentence about the first engine that is installed in a version outside its range; None if all fit."""
    for name, wanted in engines.items():
        now = installed(name)
        if now is not None and not _release(wanted["from"]) <= _release(now) < _release(wanted["before"]):
            return f"it was written for {name} {wanted['from']} up to {wanted['before']}, and {now} is installed"
    return None


def _release(text: str) -> tuple[int, ...]:
    return Version(text).release  # a pre-release counts as its release
