"""A target: an engine, the policies it can carry, and a function that writes its files."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field

from policies.export.portable import CARRIED, dumps
from policies.export.source import ROLES, ExportError, Source
from policies.features.table import FEATURES

Files = dict[str, bytes | str | list | dict]  # contents by path: a list is a line of arguments, a dict is JSON
Engines = dict[str, tuple[str, str]]  # by distribution: versions from (included) and to (excluded)


@dataclass(frozen=True)
class Target:
    """``write(source)`` returns the files; ``refuse(source)`` the reason why it cannot, or None."""

    name: str
    summary: str  # one line: the files, and the program that reads them
    write: Callable[[Source], Files]
    refuse: Callable[[Source], str | None] = lambda source: None
    carries: str = "every policy"  # one line for ``--list``
    roles: tuple[str, ...] = ROLES
    probability: str | None = None  # the feature that the engine compares with a threshold, if it has one
    engines: Engines = field(default_factory=dict)
    evidence: str = "run"  # "run": the tests run the engine if installed; "notes": the keys are from its documentation

    def files(self, source: Source) -> dict[str, bytes]:
        """The files of ``source`` by path. ExportError with the reason if this target cannot carry it."""
        reason = self.reason(source)
        if reason is not None:
            raise ExportError(f"{self.name} cannot carry this policy: {reason}")
        return {path: _encoded(content) for path, content in self.write(source).items()}

    def reason(self, source: Source) -> str | None:
        """The reason why this target cannot carry ``source``; None if it can."""
        if source.policy.kind not in CARRIED:
            return f"a {source.policy.kind} policy is a baseline to compare with, and no engine was taught it"
        if source.role not in self.roles:
            return HANDOFF
        return self.refuse(source)


HANDOFF = (
    "it decides who writes (backoff), and this engine checks every token with the large model; "
    "pass --role stop to end drafts with it"
)


def no_verification(source: Source) -> str | None:
    """``refuse`` of targets that see no logits of the large model at a drafted token."""
    for name in source.policy.names:
        if FEATURES[name].needs_target:
            return f"{name!r} is a feature of drafted tokens that the large model has read; use --to json"
    return None


def _encoded(content: bytes | str | list | dict) -> bytes:
    match content:
        case bytes():
            return content
        case dict():
            return dumps(content, indent=2)
        case list():
            content = shlex.join(map(str, content)) + "\n"
    return content.encode()
