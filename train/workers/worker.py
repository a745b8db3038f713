"""A worker: it makes the missing shards of a stage, one by one, until none is left.

    python -m train.workers.worker FOLDER

in the folder of a stage (``queue/KIND-HASH``, beside what comes of it) is what a back end starts, and what a person may
start on any machine that sees the folder: it helps the job that waits for these shards.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated

import tyro

from train.common.cli import InputError, attempt, checking


@dataclass
class Worker:
    """Make the missing shards of a stage."""

    folder: Annotated[Path, tyro.conf.Positional]
    """of the stage"""
    owner: str = field(default_factory=lambda: f"{platform.node()}-{os.getpid()}")
    """name of this worker, of which there must be one (default: machine and process)"""
    first: float = 0.0
    """share of the shards at which it begins"""
    threads: int | None = None
    """CPU threads (default: torch's choice)"""
    log: Path | None = None
    """what it prints is appended to this file"""


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0 when no shard is left, 2 after a sentence on what is wrong."""
    config = tyro.cli(Worker, args=argv, description=__doc__)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    if config.log is not None:
        print_to(config.log)
    return attempt("worker", lambda: work(config))


def work(config: Worker) -> None:
    """Make shards until none is left. InputError where the models are not those of the job."""
    from train.common.progress import say
    from train.workers.stage_folder import StageFolder

    folder, count = StageFolder(config.folder.resolve()), 0
    say(f"{datetime.now():%Y-%m-%d %H:%M:%S} worker {config.owner} on {platform.node()}, process {os.getpid()}")
    if folder.waiting():  # a job of Slurm may begin when all is done
        maker = load(folder, config.threads)
        for name, task in folder.tasks(config.owner, config.first):
            began, path = time.perf_counter(), folder.done(name)
            if not path.exists():  # a worker that was given up may have made it
                maker(task, path)
            count += 1
            say(f"shard {name} in {time.perf_counter() - began:.1f} s")
    say(f"made {count} shards")


def load(folder, threads: int | None):
    """The maker of the stage in ``folder``, on models that are loaded here."""
    from pkgutil import resolve_name

    from decoding.cli.options import use
    from train.common.schema import checked
    from train.workers.blueprint import Blueprint
    from train.workers.pair import PairSource
    from train.workers.stage import KINDS
    from train.workers.stage_folder import AGAIN

    about, path = folder.read(), folder.path
    os.chdir(about["folder"])  # which paths of the models start from
    source = checked(PairSource, about["pair"], path, AGAIN)
    with checking():
        use(source.device, threads)
        pair = loaded(source)
    if pair.identities() != about["models"]:
        raise InputError(f"the models loaded here are not those of the job in {path}; give both the same files")
    decoders = {name: Blueprint.read(path, saved, pair.models).decoder for name, saved in about["decoders"].items()}
    return resolve_name(KINDS[about["kind"]])(pair, about["settings"], decoders)


@cache
def loaded(source):
    """The pair of ``source``, loaded once for all stages."""
    from decoding.cli.generation_config import without
    from decoding.models.defaults import load_model
    from train.common.preparation import load_pair
    from train.workers.pair import Pair

    if not source.alone:
        return Pair(load_pair(source, source.drawing))
    large = load_model("large", source.large, source.device, source.dtypes.of("large"), source.backend)
    without([large], source.ignore_generation_config)
    return Pair([large])


def print_to(path: Path) -> None:
    """Let all that this process prints from now on, also from C, be appended to the file ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


if __name__ == "__main__":
    raise SystemExit(main())
