"""A line of a registry: it describes a class or function, and imports it on first use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One line of a registry. It imports nothing: torch takes seconds, and a list of names should not."""

    home: str  # ``package.module:name``, below ``decoding``
    about: str  # a few words for lists
    settings: dict[str, Any] = field(default_factory=dict)  # keyword arguments with their defaults
    lossless: bool = False  # whether the output, at these defaults, is distributed as the large model's own

    @property
    def module(self) -> str:
        return self.home.partition(":")[0]

    def load(self) -> Callable[..., Any]:
        """The class or function itself."""
        return resolve_name(f"decoding.{self.home}")
