"""Workers that are actors on a Ray cluster; one whose node is lost is replaced wherever there is room."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

from train.workers.backend import FORMS, Start, count_of, import_path

ADDRESS = re.compile(r"(?P<address>auto|local|(?:ray://)?(?:\[[^\]]+\]|[^:/\[\]]+):\d+)(?::(?P<count>.*))?")


@dataclass(frozen=True)
class RayActors:
    """``count`` actors, each with a GPU or ``threads`` CPUs; by default one a GPU, or one a node."""

    name: ClassVar[str] = "ray"
    count: int
    address: str
    threads: int
    gpus: int
    asleep: dict[int, Actor] = field(default_factory=dict)  # by place, as they wait for a stage

    @classmethod
    def parse(cls, rest: str, device: str, threads: int | None, folder: Path) -> Self:
        found = ADDRESS.fullmatch(rest)
        if found is None:
            raise ValueError(f"--workers ray:{rest}: ADDRESS must be host:port, auto or local; write {FORMS}")
        count = None if found["count"] is None else count_of(found["count"], f"ray:{rest}")
        gpus = int(device.startswith("cuda"))
        connect(found["address"])
        if count is None:
            count = default_count(gpus)
        return cls(count, found["address"], threads or share_of_cores(count), gpus)

    @property
    def described(self) -> str:
        return f"Ray actors at {self.address}, {self.threads} threads each"

    def start(self, starts: Sequence[Start]) -> dict[str, Actor]:
        import ray

        connect(self.address)
        # What this process imports, it imports there.
        environment = {"env_vars": {"PYTHONPATH": import_path(), "OMP_NUM_THREADS": str(self.threads)}}
        made_by = ray.remote(ShardActor).options(
            num_cpus=self.threads, num_gpus=self.gpus, max_restarts=0, runtime_env=environment
        )
        for start in starts:
            if start.place not in self.asleep or self.asleep[start.place].dead:
                self.asleep[start.place] = Actor(made_by.remote())
            self.asleep[start.place].tell(start.arguments(self.threads))
        return {start.owner: self.asleep[start.place] for start in starts}

    def close(self) -> None:
        for actor in self.asleep.values():
            actor.stop()
        self.asleep.clear()


class ShardActor:
    """A worker in a process that Ray starts."""

    def work(self, arguments: list[str]) -> int:
        """The exit code of ``train.workers.worker``."""
        from train.workers.worker import main

        return main(arguments)


class Actor:
    """A worker that was asked for: it waits until there is room for it in the cluster."""

    def __init__(self, actor):
        self.actor, self.result, self.dead = actor, None, False

    def tell(self, arguments: list[str]) -> None:
        """Let it work on a stage."""
        self.result = self.actor.work.remote(arguments)

    def ended(self) -> str | None:
        import ray

        ready, _ = ray.wait([self.result], timeout=0)
        if not ready:
            return None
        try:
            code = ray.get(self.result)
        except Exception as error:  # an actor that died, a node that is gone, or an error in it
            self.stop()
            return type(error).__name__
        return f"exit code {code}" if code else ""

    def stop(self) -> None:
        import ray

        self.dead = True
        ray.kill(self.actor)

    def wait(self) -> None:
        """Ray has killed it."""


def connect(address: str) -> None:
    """Join the cluster at ``address``, unless this process is part of one. ValueError where there is none."""
    try:
        import ray
    except ImportError as error:
        raise ValueError("--workers ray needs ray; pip install 'two-model-decoding[ray]'") from error
    if ray.is_initialized():
        return
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except Exception as error:  # each version raises kinds of its own
        raise ValueError(f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}") from error


def default_count(gpus: int) -> int:
    """Actors that fill the cluster: one a GPU, or one a node."""
    import ray

    if gpus:
        return max(1, int(ray.cluster_resources().get("GPU", 0)))
    return max(1, sum(node["Alive"] for node in ray.nodes()))


def share_of_cores(count: int) -> int:
    """The cores of the cluster for each of ``count`` actors, but no more than the largest node has."""
    import ray

    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return max(1, min(max(nodes, default=1), sum(nodes) // count))
