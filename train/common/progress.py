"""Progress of long steps: a bar on a terminal; in a file a line now and then, with the count and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from rich.console import Console
from rich.progress import Progress

EVERY = 30.0
"""seconds between two lines"""
console = Console()
_log: list[Console] = []


def say(*objects: object, **options) -> None:
    """Print on the console, and in the log while there is one."""
    for out in (console, *_log):
        out.print(*objects, **options)


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append to the file ``path`` all that ``say`` prints, and the lines of ``progress``."""
    with path.open("a", encoding="utf-8") as file:
        _log.append(Console(file=file, width=console.width, force_terminal=False))
        try:
            yield
        finally:
            _log.pop()


def track(items: Sequence, title: str) -> Iterator:
    """The items one by one, with progress; nothing is shown of none."""
    if not len(items):
        return
    with progress(title, len(items)) as update:
        for count, item in enumerate(items, 1):
            yield item
            update(count)


@contextmanager
def progress(title: str, total: int | None = None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a step that is under way, and yield the function that takes how many of ``total`` are done by now.

    A step without a ``total`` only shows that it has begun and ended.
    """
    step, ended = Step(title, total, done), Event()
    outs = [*_log] if console.is_terminal else [console, *_log]
    ticker = Thread(target=_tick, args=(step, outs, ended), daemon=True)
    with Progress(console=console, transient=total is None, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=done)

        def update(count: int) -> None:
            step.done = count
            bar.update(task, completed=count)

        ticker.start()
        try:
            yield update
        finally:
            ended.set()
            ticker.join()
    _print(outs, step.last_line())


class Step:
    """How much of a step is done, and since when, as a line of text."""

    def __init__(self, title: str, total: int | None, done: int, clock: Callable[[], float] = time.monotonic):
        self.title, self.total, self.done, self.before = title, total, done, done
        self.clock, self.began = clock, clock()

    def line(self) -> str:
        """`collecting traces 12/40, 3:10 left`; what an item takes is known from the second line on."""
        passed, fresh = self.clock() - self.began, self.done - self.before
        if self.total is None or not fresh:
            return f"{self._count()}, {_duration(passed)} so far"
        return f"{self._count()}, {_duration(passed / fresh * (self.total - self.done))} left"

    def last_line(self) -> str:
        return f"{self._count()}, took {_duration(self.clock() - self.began)}"

    def _count(self) -> str:
        return self.title if self.total is None else f"{self.title} {self.done}/{self.total}"


def _tick(step: Step, outs: Sequence[Console], ended: Event) -> None:
    while not ended.wait(EVERY):
        _print(outs, step.line())


def _print(outs: Sequence[Console], line: str) -> None:
    for out in outs:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
