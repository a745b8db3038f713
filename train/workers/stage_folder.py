"""The folder of a stage, a queue of shards that processes on any machine share.

The state of a shard is the folder that its file is in: its task is in ``todo``, then, renamed by the worker that makes
it, in ``taken``; the shard itself appears in ``done``. A rename has one winner, also on a shared file system, so no
shard is taken twice; one that a lost worker had taken goes back to ``todo``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from policies.storage import documents
from train.common import atomic
from train.workers.pair import Pair, PairSource
from train.workers.stage import Stage

QUEUE = "queue"
AGAIN = "start the job again"
OWNER = "@"
"""between the name of a shard and that of the worker that has taken it"""


@dataclass(frozen=True)
class StageFolder:
    """The folder ``path`` of a stage."""

    path: Path

    @classmethod
    def of(cls, stage: Stage, pair: Pair, own: str = "") -> StageFolder:
        """The folder of ``stage``; ``own`` sets it apart from that of another process."""
        return cls(stage.folder / f"{QUEUE}{own}" / f"{stage.kind}-{stage.digest(pair)}")

    def done(self, name: str) -> Path:
        """Where the shard ``name`` is, once it is made."""
        return self.path / "done" / name

    def write(self, stage: Stage, pair: Pair, source: PairSource) -> None:
        """Write down the stage and the tasks of its shards that are not made. Nobody has taken any."""
        for name in ("todo", "taken"):
            shutil.rmtree(self.path / name, ignore_errors=True)
            (self.path / name).mkdir(parents=True)
        (self.path / "done").mkdir(exist_ok=True)
        about = {
            "kind": stage.kind,
            "settings": stage.settings,
            "decoders": {name: one.save(self.path / f"{name}.json") for name, one in stage.blueprints.items()},
            "pair": asdict(source),
            "models": pair.identities(),
            "folder": os.getcwd(),
        }
        documents.write(self.path / "stage.json", atomic.plain(about))
        for number, name in stage.names().items():
            if not self.done(name).exists():
                documents.write(self.path / "todo" / name, stage.tasks[number])

    def read(self) -> dict[str, Any]:
        """What ``write`` wrote of the stage."""
        return documents.read(self.path / "stage.json", AGAIN)

    def waiting(self) -> list[str]:
        """The names of the shards that nobody has taken."""
        return _names(self.path / "todo")

    def unfinished(self) -> int:
        """How many shards wait or are taken."""
        return len(self.waiting()) + len(_names(self.path / "taken"))

    def made(self) -> set[str]:
        """The names of the shards that are there, but for those that have found their place elsewhere."""
        return set(_names(self.path / "done"))

    def tasks(self, owner: str, first: float = 0.0) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name, task) of shards that ``owner`` takes, one by one, until none is left.

        It goes through them in their order, round and round, from the one at the share ``first`` of all: neighbours
        may have prompts in common, which are read once by a worker that has both.
        """
        names = self.waiting()
        begin = int(first * len(names))
        names = names[begin:] + names[:begin]
        while names:
            for name in names:
                taken = self.path / "taken" / f"{name}{OWNER}{owner}"
                try:
                    os.rename(self.path / "todo" / name, taken)
                except FileNotFoundError:  # another was first
                    continue
                yield name, documents.read(taken, AGAIN)
                taken.unlink(missing_ok=True)
            names = self.waiting()  # what was given back

    def give_back(self, owner: str) -> list[str]:
        """Let others take the shards that ``owner`` has taken and will not make; returns their names."""
        lost = []
        for taken in (self.path / "taken").glob(f"*{OWNER}{owner}"):
            name = taken.name.partition(OWNER)[0]
            if self.done(name).exists():
                taken.unlink(missing_ok=True)
            else:
                os.rename(taken, self.path / "todo" / name)
                lost.append(name)
        return lost


def _names(folder: Path) -> list[str]:
    """Of the whole files in ``folder``."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.endswith(".tmp"))
    except FileNotFoundError:
        return []
