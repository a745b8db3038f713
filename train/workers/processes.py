"""Workers that are processes of this machine, which end with the one that started them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

from train.workers.backend import Start, cores, count_of, import_path

PATIENCE = 10.0
"""seconds that a process has to clean up in"""


@dataclass(frozen=True)
class Processes:
    """``count`` processes, which share the cores; on CUDA each has a GPU, in turn.

    They sleep between two stages, so that each loads the models once.
    """

    name: ClassVar[str] = "processes"
    count: int
    threads: int
    gpus: tuple[str, ...] = ()
    asleep: dict[int, Process] = field(default_factory=dict)  # by place

    @classmethod
    def parse(cls, rest: str, device: str, threads: int | None, folder: Path) -> Self:
        count = count_of(rest, f"processes:{rest}")
        share = max(1, cores() // count) if threads is None else threads
        return cls(count, share, visible_gpus() if device == "cuda" else ())

    @property
    def described(self) -> str:
        return f"processes of this machine, {self.threads} threads each"

    def start(self, starts: Sequence[Start]) -> dict[str, Process]:
        for start in starts:
            if start.place not in self.asleep or self.asleep[start.place].process.poll() is not None:
                self.asleep[start.place] = self._process(start)
            self.asleep[start.place].tell(start)
        return {start.owner: self.asleep[start.place] for start in starts}

    def close(self) -> None:
        for process in self.asleep.values():
            process.stop()
        for process in self.asleep.values():
            process.wait()
        self.asleep.clear()

    def _process(self, start: Start) -> Process:
        own = {"PYTHONPATH": import_path(), "OMP_NUM_THREADS": str(self.threads)}
        if self.gpus:
            own["CUDA_VISIBLE_DEVICES"] = self.gpus[start.place % len(self.gpus)]
        # With -P: a folder of the user's that is named as a package of ours is none.
        command = [sys.executable, "-P", "-m", "train.workers.served", str(start.log), str(self.threads)]
        return Process(command, os.environ | own)


class Process:
    """A process that makes the shards of the stages it is told of; it ends when its standard input does."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the driver, which ends its workers
        )

    def tell(self, start: Start) -> None:
        """Let it work on a stage."""
        asked = {"folder": str(start.folder), "owner": start.owner, "first": start.first}
        with suppress(BrokenPipeError):  # its end is seen below
            self.process.stdin.write(json.dumps(asked).encode() + b"\n")
            self.process.stdin.flush()

    def ended(self) -> str | None:
        code = self.process.poll()
        if code is not None:
            return signal.Signals(-code).name if code < 0 else f"exit code {code}"
        said, *_ = select.select([self.process.stdout], [], [], 0)
        return "" if said and os.read(self.process.stdout.fileno(), 1) else None

    def stop(self) -> None:
        self.process.terminate()

    def wait(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
        self.process.kill()
        self.process.wait()
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return tuple(named.split(",")) if named else tuple(map(str, range(torch.cuda.device_count())))
