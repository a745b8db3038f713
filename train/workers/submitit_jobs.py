"""Workers that are jobs of Slurm, or of this machine in their place, started by submitit as an array."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from train.workers import worker
from train.workers.backend import Start, cores, count_of, import_path

CLUSTERS = ("slurm", "local")
COUNT = 8
MINUTES = 24 * 60
"""most that a job may take; a queue of shorter jobs is asked for by SBATCH_TIMELIMIT"""
PATIENCE = 30.0
"""seconds that jobs have to end in once they are cancelled"""


@dataclass(frozen=True)
class SubmititJobs:
    """``count`` jobs; what else Slurm is to know it reads from the environment: SBATCH_PARTITION, SBATCH_ACCOUNT ..."""

    name: ClassVar[str] = "submitit"
    count: int
    cluster: str | None  # None: whatever submitit finds
    folder: Path  # of what submitit writes
    threads: int | None
    gpus: int

    @classmethod
    def parse(cls, rest: str, device: str, threads: int | None, folder: Path) -> Self:
        where, colon, number = rest.rpartition(":")
        where, count = (where, count_of(number, f"submitit:{rest}")) if colon else (rest, COUNT)
        try:
            import submitit  # noqa: F401
        except ImportError as error:
            raise ValueError("--workers submitit needs submitit; pip install 'two-model-decoding[slurm]'") from error
        cluster = where if where in CLUSTERS else None
        if cluster == "local" and threads is None:
            threads = max(1, cores() // count)
        home = folder / "workers" / "submitit" if cluster else Path(where)
        return cls(count, cluster, home, threads, int(device.startswith("cuda")))

    @property
    def described(self) -> str:
        return f"jobs of {self.cluster or 'the cluster that submitit finds'}"

    def start(self, starts: Sequence[Start]) -> dict[str, SubmittedJob]:
        import submitit

        executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
        asked: dict[str, Any] = {"timeout_min": MINUTES, "name": "shards", "gpus_per_node": self.gpus}
        if self.threads is not None and executor.cluster == "slurm":
            asked["cpus_per_task"] = self.threads
        executor.update_parameters(**asked)
        with _same_imports(), executor.batch():
            jobs = [executor.submit(worker.main, start.arguments(self.threads)) for start in starts]
        return {start.owner: SubmittedJob(job) for start, job in zip(starts, jobs, strict=True)}

    def close(self) -> None:
        """Nothing is kept: a job ends with its stage, so that no node waits."""


class SubmittedJob:
    """A worker that is a job of submitit."""

    def __init__(self, job):
        self.job = job

    def ended(self) -> str | None:
        if not self.job.done():
            return None
        try:
            code = self.job.result()
        except Exception:  # it left no word, or that of an error; submitit raises several kinds
            return f"{self.job.state}, job {self.job.job_id}"
        return f"exit code {code}" if code else ""

    def stop(self) -> None:
        self.job.cancel(check=False)

    def wait(self) -> None:
        until = time.monotonic() + PATIENCE
        while not self.job.done() and time.monotonic() < until:
            time.sleep(0.1)


@contextmanager
def _same_imports() -> Iterator[None]:
    """Let jobs that are submitted inside import what this process imports; they inherit its environment."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = import_path()
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
