"""Progress of long steps: a bar on a terminal; in a file a line now and then, with the count and the time left."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread

from rich.progress import Progress, TextColumn

from decoding.cli.terminal import PlainConsole
from policies.storage.atomic import naming

EVERY = 30.0
"""Seconds between two lines."""
PLAIN = {"markup": False, "highlight": False, "soft_wrap": True}
"""how a line is printed: as it is"""
COLUMNS = TextColumn("{task.description}", markup=False), *Progress.get_default_columns()[1:]
console = PlainConsole()
_log: list[PlainConsole] = []
_notes: list[str] = []


def say(*objects: object, **options) -> None:
    """Print on the console, and in the log while there is one; strings as they are, without markup."""
    _print((console, *_log), *objects, **options)


def say_if(sentence: str | None) -> None:
    """Say, in bold, what there is to be said."""
    if sentence is not None:
        say(sentence, style="bold")


def note(line: str) -> None:
    """Say ``line``, for the next log too: a log is opened when all has been checked, and that is worth noting."""
    say(line, **PLAIN)
    if not _log:
        _notes.append(line)


def forget_notes() -> None:
    """Keep no line of a job that came to no log."""
    _notes.clear()


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append to the file ``path`` what has been noted, all that ``say`` prints, and the lines of ``progress``."""
    file = path.open("a", encoding="utf-8", errors="backslashreplace")
    _log.append(PlainConsole(file=file, width=console.width, force_terminal=False))
    try:
        for line in _notes:
            _print(_log[-1:], line, **PLAIN)
        forget_notes()
        yield
    finally:
        _log.pop()
        with naming(path):
            file.close()


def track(items: Sequence, title: str) -> Iterator:
    """The items one by one, with progress; nothing is shown of none."""
    if len(items):
        with progress(title, len(items)) as update:
            for count, item in enumerate(items, 1):
                yield item
                update(count)


@contextmanager
def progress(title: str, total: int = 1, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a step that is under way, and yield the function to call with how many of ``total`` are done by now."""
    step, ended = Step(title, total, done), Event()
    outs = [*_log] if console.is_terminal else [console, *_log]

    def show_lines() -> None:
        with suppress(OSError):  # of a full disk, which the next line of the job itself will meet
            while not ended.wait(EVERY):
                _print(outs, step.line(), **PLAIN)

    with Progress(*COLUMNS, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=done)

        def update(count: int) -> None:
            step.done = count
            bar.update(task, completed=count)

        ticker = Thread(target=show_lines, daemon=True)
        ticker.start()
        try:
            yield update
            update(total)
        finally:
            ended.set()
            ticker.join()
    _print(outs, step.line(), **PLAIN)


class Step:
    """The share of a step that is done, and its start."""

    def __init__(self, title: str, total: int, done: int, clock: Callable[[], float] = time.monotonic):
        self.title, self.total, self.done, self.before = title, total, done, done
        self.clock, self.began = clock, clock()

    def line(self) -> str:
        """`collecting traces 12/40, 0:03:10 left`; before the first and after the last, the time passed."""
        seconds, fresh, left = self.clock() - self.began, self.done - self.before, self.total - self.done
        if fresh and left > 0:
            seconds *= left / fresh
        what = "in all" if left <= 0 else "left" if fresh else "so far"
        count = f" {self.done}/{self.total}" if self.total > 1 else ""
        return f"{self.title}{count}, {timedelta(seconds=round(seconds))} {what}"


def _print(outs: Sequence[PlainConsole], *objects: object, **options) -> None:
    for out in outs:
        with naming(getattr(out.file, "name", "the terminal")):
            out.print(*objects, **options)
