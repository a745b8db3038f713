"""Who makes the shards of a stage: this process alone, or workers that it starts and looks after."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from policies.storage.atomic import sweep
from train.common.progress import progress, say, track
from train.workers.backend import Backend, Running, Start, WorkersFailed
from train.workers.pair import Pair, PairSource
from train.workers.stage import Stage
from train.workers.stage_folder import QUEUE, StageFolder

TRIES = 3
"""workers that may be lost at one shard, or before any: then another is not to be hoped to do better"""
LAST = 20.0
"""seconds that workers have to end in when all shards are there: one may still load the models"""
EVERY = 0.1
"""seconds between two looks at the workers"""


class Crew(Protocol):
    """Makes shards, and keeps them until ``clear``."""

    def made(self, stage: Stage, pair: Pair) -> Iterator[tuple[int, Path]]:
        """(number, file) of the shards of ``stage``, in their order; whoever takes a file may move it.

        What an earlier start has made, by whichever crew, is not made again. No worker runs before the first shard is
        asked for or after the last.
        """

    def clear(self, folder: Path) -> None:
        """Remove what it keeps of the stages in ``folder``, once all that comes of them is stored."""

    def close(self) -> None:
        """Let go of workers that wait for a next stage."""


@dataclass(frozen=True)
class Alone:
    """This process makes the shards itself, one by one."""

    own: str = ""
    """what sets its folders apart from those of another process that is at work on the same stage"""

    def made(self, stage: Stage, pair: Pair) -> Iterator[tuple[int, Path]]:
        folder, maker = StageFolder.of(stage, pair, self.own), None
        for number, name in track([*stage.names().items()], stage.title):
            path = folder.done(name)
            if not path.exists():
                maker = stage.maker(pair) if maker is None else maker
                maker(stage.tasks[number], path)
            yield number, path

    def clear(self, folder: Path) -> None:
        shutil.rmtree(folder / f"{QUEUE}{self.own}", ignore_errors=True)

    def close(self) -> None:
        """There are none."""


ALONE = Alone()


@dataclass(frozen=True)
class Workers:
    """Workers of a back end, each of which loads the pair once; this process only waits for their shards.

    A worker that ends too soon loses the shard that it was making, which another makes. WorkersFailed where that
    happens ``TRIES`` times at one shard.
    """

    backend: Backend
    source: PairSource
    logs: Path  # the folder of a log for each worker
    at_work: list[_Team] = field(default_factory=list)

    def made(self, stage: Stage, pair: Pair) -> Iterator[tuple[int, Path]]:
        if len(stage.tasks) < 2 or not stage.portable:  # this process has the pair already
            yield from ALONE.made(stage, pair)
            return
        folder, names = StageFolder.of(stage, pair), stage.names()
        folder.write(stage, pair, self.source)
        team, left = _Team(self, folder, stage.title), {*names.values()}
        self.at_work.append(team)
        with progress(stage.title, len(names)) as update, closing(team):
            for number, name in names.items():
                while not folder.done(name).exists():
                    team.tend()
                    update(len(names) - len(left - folder.made()))
                    time.sleep(EVERY)
                left.remove(name)
                yield number, folder.done(name)
            team.finish()

    def clear(self, folder: Path) -> None:
        ALONE.clear(folder)

    def close(self) -> None:
        while self.at_work:
            self.at_work[-1].close()
        self.backend.close()


@dataclass(eq=False)
class _Team:
    """The workers of one stage: as many as there are shards for, replaced as they are lost."""

    crew: Workers
    folder: StageFolder
    title: str
    running: dict[str, Running] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    """by worker, which of the ``backend.count`` it is"""
    lost: Counter = field(default_factory=Counter)
    """how often a worker was lost, by the shard that it was making, or before it made one"""
    started: int = 0

    def tend(self) -> None:
        """Replace the workers that have ended while shards wait."""
        for owner in [*self.running]:
            how = self.running[owner].ended()
            if how is not None:
                self._bury(owner, how)
        free = [place for place in range(self.crew.backend.count) if place not in self.places.values()]
        wanted = self.folder.unfinished() - len(self.running) if free else 0
        if wanted > 0 and self.folder.waiting():
            self._start(free[:wanted])

    def _start(self, places: Sequence[int]) -> None:
        backend, starts = self.crew.backend, []
        if not self.started:
            say(f"{self.title}: {len(places)} workers ({backend.described}), logs in {self.crew.logs}")
        for place in places:
            self.started += 1
            owner = f"{place + 1}.{self.started}"
            self.places[owner] = place
            log = self.crew.logs / f"worker-{place + 1}.log"
            starts.append(Start(self.folder.path.resolve(), owner, place, place / backend.count, log.resolve()))
        self.running |= backend.start(starts)

    def _bury(self, owner: str, how: str) -> None:
        """Let others take what the worker ``owner`` was making. WorkersFailed if they are not likely to make it."""
        del self.running[owner]
        place = self.places.pop(owner)
        shards = self.folder.give_back(owner)
        if not shards and not how:
            return
        log = self.crew.logs / f"worker-{place + 1}.log"
        what = f"at shard {int(shards[0].partition('-')[0])}" if shards else "before it made a shard"
        say(f"{self.title}: worker {place + 1} was lost {what} ({how or 'it ended'}); another goes on")
        for shard in shards or [f"before, {len(self.folder.waiting())} waiting"]:
            self.lost[shard] += 1
            if self.lost[shard] >= TRIES:
                raise WorkersFailed(
                    f"{self.title}: workers were lost {TRIES} times {what} ({how or 'it ended'}); "
                    f"the log of the last is {log}"
                )

    def finish(self) -> None:
        """Give the workers a while to see that all is done."""
        until = time.monotonic() + LAST
        while self.running and time.monotonic() < until:
            time.sleep(EVERY / 10)
            self.running = {owner: one for owner, one in self.running.items() if one.ended() is None}

    def close(self) -> None:
        """End the workers that still run, and remove what they leave unfinished."""
        if self in self.crew.at_work:
            self.crew.at_work.remove(self)
        for one in self.running.values():
            one.stop()
        for one in self.running.values():
            one.wait()
        self.running.clear()
        sweep(self.folder.path)
