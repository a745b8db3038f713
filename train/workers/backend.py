"""The back ends of ``--workers``: where workers run. Each is a file of this folder and a line of ``BACKENDS``.

All of them start the same entry, ``train.workers.worker``, in the folder of a stage, which every worker must see.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import ClassVar, Protocol, Self

BACKENDS = {
    "processes": "train.workers.processes:Processes",
    "submitit": "train.workers.submitit_jobs:SubmititJobs",
    "ray": "train.workers.ray_actors:RayActors",
}
"""Class by the name before the first colon of the option."""
FORMS = "processes:N, submitit:FOLDER_OR_CLUSTER[:N] or ray:ADDRESS[:N]"


class WorkersFailed(Exception):
    """Workers were lost again and again; the message is one sentence and names the log of the last."""


@dataclass(frozen=True)
class Start:
    """What a worker is told, with paths that hold in every folder."""

    folder: Path  # of the stage
    owner: str  # the worker's name, of which there is one
    place: int  # which of the workers at once it is
    first: float  # the share of the shards at which it begins
    log: Path

    def arguments(self, threads: int | None) -> list[str]:
        """Of ``python -m train.workers.worker``."""
        given = ["--owner", self.owner, "--first", str(self.first), "--log", str(self.log)]
        return [str(self.folder), *given, *([] if threads is None else ["--threads", str(threads)])]


class Running(Protocol):
    """A worker that was started."""

    def ended(self) -> str | None:
        """None while it runs or waits for its turn; "" when it has done all there was to do, else why it ended."""

    def stop(self) -> None:
        """Let it end at once; it may have ended."""

    def wait(self) -> None:
        """Return when it has ended after ``stop``, or soon after."""


class Backend(Protocol):
    """Starts workers somewhere."""

    name: ClassVar[str]
    count: int
    """workers at once"""

    @property
    def described(self) -> str:
        """What a person reads of it."""

    @classmethod
    def parse(cls, rest: str, device: str, threads: int | None, folder: Path) -> Self:
        """The back end that ``rest``, the option after its name and colon, asks for; nothing is started yet.

        ``device`` of the models; ``threads`` of each worker (None: its share of the cores); ``folder`` of the run.
        ValueError, one sentence, for what it cannot be.
        """

    def start(self, starts: Sequence[Start]) -> dict[str, Running]:
        """The workers by their ``owner``."""

    def close(self) -> None:
        """Let go of what is kept for a next stage."""


def parse(option: str, device: str, threads: int | None, folder: Path) -> Backend:
    """The back end that the value ``option`` of --workers asks for. ValueError, one sentence, for no such."""
    name, colon, rest = option.partition(":")
    if name not in BACKENDS or not colon or not rest:
        raise ValueError(f"--workers is {option!r}; write {FORMS}")
    return resolve_name(BACKENDS[name]).parse(rest, device, threads, folder)


def count_of(text: str, option: str) -> int:
    """The number of workers that ``text`` is. ValueError, one sentence, for no number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError(f"--workers {option}: {text!r} is no number of workers; write {FORMS}, with N at least 1")
    return int(text)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def import_path() -> str:
    """The folders that this process imports from, as PYTHONPATH has them; an empty one is the current folder."""
    return os.pathsep.join(os.path.abspath(part) for part in sys.path)
