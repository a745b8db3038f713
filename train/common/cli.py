"""Shared by the commands: wrong input is one sentence and exit code 2, and a stop says how to continue."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from decoding.cli.ending import ending
from decoding.cli.numbers import check_numbers
from decoding.errors import MemoryTooSmall, UnwritableText

T = TypeVar("T")


class InputError(ValueError):
    """Wrong input of the user; the message is one sentence."""


@contextmanager
def checking() -> Iterator[None]:
    """Turn an OSError or ValueError raised inside into an InputError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(" ".join(str(error).split())) from error


def at_least(config, least: dict[str, int]) -> None:
    """ValueError for the first setting of ``config`` that is given and below its value in ``least``."""
    for name, low in least.items():
        value = getattr(config, name)
        if value is not None and value < low:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {low}, not {value}")


def positive(config, *names: str) -> None:
    """ValueError for the first setting of ``names`` that is not a positive finite number."""
    for name in names:
        value = getattr(config, name)
        if not 0 < value < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} must be positive, not {value:g}")


def attempt(name: str, job: Callable[[], object], folder: Path | None = None) -> int:
    """The exit code of ``job()``, as ``decoding.cli.ending`` has it; 0 whatever it returns."""

    def run() -> int:
        from train.common import alone

        try:
            job()
        finally:
            alone.release()
        return 0

    return ending(name, run, mendable, folder)


def mendable(error: Exception) -> bool:
    """Whether the user can mend it: wrong input or model, a full disk, a folder or an engine that is gone."""
    from policies.storage.documents import FileError  # torch comes with it
    from train.baselines.subprocess_engine import EngineEnded
    from train.workers.backend import WorkersFailed

    known = InputError | FileError | OSError | FloatingPointError | MemoryTooSmall | UnwritableText
    known |= EngineEnded | WorkersFailed
    return isinstance(error, known)


def command(
    settings: type[T], run: Callable[[T], object], doc: str | None, folder: Callable[[T], Path | None] = lambda _: None
) -> Callable[..., int]:
    """The ``main(argv=None)`` of the command whose file defines ``run``; it returns the exit code of ``attempt``.

    settings: the dataclass of its options, whose numbers and names are checked. doc: what --help says before them.
    folder: as ``attempt`` takes it.
    """

    def main(argv: list[str] | None = None) -> int:
        import tyro

        config = tyro.cli(settings, args=argv, description=doc)
        return attempt(Path(inspect.getfile(run)).stem, lambda: run(checked_options(config)), folder(config))

    return main


def checked_options(config: T) -> T:
    """``config``. InputError for a number that no option can mean, and for a name that no report could show."""
    with checking():
        check_numbers(config)
        _check_names(config)
    return config


def _check_names(config) -> None:
    """ValueError, one sentence, for the first text or path of the dataclass ``config`` that is not UTF-8."""
    for name, value in vars(config).items():
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str | Path) and str(text).encode(errors="replace").decode() != str(text):
                raise ValueError(f"--{name.replace('_', '-')} is {str(text)!r}, which is not UTF-8; rename it")
