"""What a target is: an engine, what it can carry, and a function that writes its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from policies.export.portable import CARRIED
from policies.export.source import ROLES, ExportError, Source

Files = dict[str, bytes]


@dataclass(frozen=True)
class Target:
    """``write(source)`` returns the files by path. What ``refuse(source)`` names is the reason not to write them."""

    name: str
    summary: str
    """One line: what is written and what runs it."""
    write: Callable[[Source], Files]
    refuse: Callable[[Source], str | None]
    carries: str
    """One line for ``--list``: which policies fit."""
    roles: tuple[str, ...] = ROLES
    probability: str | None = None
    """The feature that the engine compares with its threshold, where it has one."""
    engines: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Distributions and the versions, from (included) to (excluded), that the files were written for."""
    evidence: str = "run"
    """``run``: the tests run the engine where it is installed; ``notes``: its keys are recorded, not run."""

    def files(self, source: Source) -> Files:
        """The files of ``source``. ExportError with the reason where this target cannot carry it."""
        reason = self.reason(source)
        if reason is not None:
            raise ExportError(f"{self.name} cannot carry this policy: {reason}")
        return self.write(source)

    def reason(self, source: Source) -> str | None:
        """Why this target cannot carry ``source``; None where it can."""
        if source.policy.kind not in CARRIED:
            return f"a {source.policy.kind} policy is a baseline to compare with, and no engine was taught it"
        if source.role not in self.roles:
            return HANDOFF
        return self.refuse(source)


HANDOFF = (
    "it decides who writes (backoff), and this engine checks every token with the large model; "
    "pass --role stop if it is to end drafts"
)


def carries_all(source: Source) -> str | None:
    """For targets that hold any policy."""
    return None
