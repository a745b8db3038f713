"""Shared by the commands: wrong input is one sentence and exit code 2, and a stop says how to continue."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from decoding.cli.terminal import escape_what_cannot_be_encoded, visible

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
    """The exit code of ``job()``: 0 when it is done, 2 after one sentence on what the user can mend, 130 after a stop.

    folder: where a job that can continue keeps its work.
    """
    from policies.storage.documents import FileError  # not above: it brings torch, for which --help would wait

    escape_what_cannot_be_encoded()
    try:
        job()
    # FloatingPointError: a model that returns NaN; OSError: a full disk, a folder that is gone.
    except (InputError, FileError, OSError, FloatingPointError) as error:
        print(f"{name}: {visible(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped" + (f"; the same command goes on from {folder}" if folder else ""), file=sys.stderr)
        return 130
    return 0


def command(
    settings: type[T], run: Callable[[T], object], doc: str | None, folder: Callable[[T], Path | None] = lambda _: None
) -> Callable[..., int]:
    """The ``main(argv=None)`` of the command whose file defines ``run``; it returns the exit code of ``attempt``.

    settings: the dataclass of its options. doc: what --help says before them. folder: as ``attempt`` takes it.
    """
    import tyro

    def main(argv: list[str] | None = None) -> int:
        config = tyro.cli(settings, args=argv, description=doc)
        return attempt(Path(inspect.getfile(run)).stem, lambda: run(config), folder(config))

    return main
