"""Jobs that are ended by a signal at chosen moments, started again, and compared with one that was left alone."""

import itertools
import json
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tiny_runs import ENV, FAST, command, save_toys, typed

from decoding.cost import cache
from decoding.cost.costs import ModelCosts

PATIENCE = 120.0
"""seconds for which a moment, or the end after a signal, is waited for"""

TRIALS = 22
COST = ModelCosts(({1: 0.0006, 64: 0.0009}, {1: 0.0045, 64: 0.006}))


@dataclass(frozen=True)
class Moment:
    """The time ``after`` (least and most seconds, drawn) that ``reached(folder, output)`` has become true.

    ``reached`` sees the folder of the run and what this start has printed; where it is true from the beginning, the
    next work that is finished counts. ``then(folder)`` is done when the process has ended.
    """

    name: str
    reached: Callable[[Path, str], bool]
    after: tuple[float, float] = (0.0, 0.0)
    then: Callable[[Path], None] | None = None


def started(*after: float) -> Moment:
    """Some time after the start, while modules are imported."""
    asked = itertools.count()
    return Moment("started", lambda *_: next(asked) > 0, after)  # not from the beginning


def said(text: str, *after: float, **more) -> Moment:
    return Moment(f"said {text!r}", lambda _, output: text in output, after or (0.0, 0.0), **more)


def there(name: str, *after: float, **more) -> Moment:
    return Moment(f"{name} is there", lambda folder, _: (folder / name).exists(), after or (0.0, 0.0), **more)


def holds(name: str, count: int, *after: float, **more) -> Moment:
    """The file has so many whole lines."""
    return Moment(
        f"{name} has {count} lines", lambda folder, _: len(lines(folder / name)) >= count, after or (0.0, 0.0), **more
    )


def lines(path: Path) -> list[bytes]:
    """Whole lines."""
    return [x for x in path.read_bytes().splitlines(keepends=True) if x.endswith(b"\n")] if path.exists() else []


class Job:
    """A command and the folder in which it works."""

    def __init__(self, command: Sequence[str], folder: Path, cwd: Path):
        self.command, self.folder, self.cwd = list(command), folder, cwd

    def finish(self) -> str:
        """Let it run to its end; returns what it printed."""
        done = subprocess.run(self.command, cwd=self.cwd, env=ENV, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def interrupt(self, moments: Iterable[Moment], signals: Sequence[int], seed: int) -> None:
        """Start it for each moment and end it there, by ``signals`` in turn; finished work must never be lost."""
        draw, kept = random.Random(seed), {}
        for i, moment in enumerate(moments):
            self._end(moment, signals[i % len(signals)], draw.uniform(*moment.after))
            found = work(self.folder)
            still(kept, found, moment.name)
            kept = found
            if moment.then is not None:
                moment.then(self.folder)
                kept = work(self.folder)

    def _end(self, moment: Moment, how: int, wait: float) -> None:
        out, err = self.cwd / "out.txt", self.cwd / "err.txt"
        with out.open("w") as stdout, err.open("w") as stderr:
            process = subprocess.Popen(
                self.command, cwd=self.cwd, env=ENV, stdout=stdout, stderr=stderr, preexec_fn=_heed_interrupts
            )
        until, before, reached = time.monotonic() + PATIENCE, work(self.folder), moment.reached
        if reached(self.folder, ""):  # the start before came further than it was to
            reached = lambda folder, _: work(folder) != before  # noqa: E731
        try:
            while not reached(self.folder, out.read_text()):
                assert process.poll() is None, f"it ended before {moment.name}: {err.read_text()}"
                assert time.monotonic() < until, f"it never came to this: {moment.name}"
                time.sleep(0.002)
            time.sleep(wait)
            assert process.poll() is None, f"it ended before the signal, {wait:.2f} s after {moment.name}"
            process.send_signal(how)
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
        error = [line for line in err.read_text().splitlines() if line and "lock file" not in line]
        if how == signal.SIGKILL:
            assert (process.returncode, error) == (-signal.SIGKILL, []), moment.name
        else:
            assert process.returncode == 130, (moment.name, error)
            assert len(error) == 1 and error[0].startswith("stopped"), (moment.name, error)
            assert not unfinished(self.folder), moment.name


def _heed_interrupts() -> None:
    """A suite that runs in the background of a shell is told to ignore them, and its children with it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def work(folder: Path) -> dict[str, object]:
    """All that is finished: whole lines of files that grow, and the others with the time at which they were written."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if "queue" in path.relative_to(folder).parts:  # shards under way, which move
            continue
        if path.suffix in (".jsonl", ".journal", ".done"):
            found[name] = lines(path)
        elif path.suffix in (".json", ".parquet"):
            found[name] = path.stat().st_mtime_ns
    return found


def still(before: dict, after: dict, moment: str) -> None:
    """What was finished is there as it was; but the report, which is written again as long as a job is unfinished."""
    for name, value in before.items():
        if isinstance(value, list):
            assert after[name][: len(value)] == value, (moment, name)
        elif name not in ("policy.json", "result.json"):
            assert after[name] == value, (moment, name)


def unfinished(folder: Path) -> list[Path]:
    """Temporary files. Locks are empty files that stay, and that nobody holds any more."""
    return list(folder.rglob("*.tmp"))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def without(value, *names: str):
    """JSON without the keys ``names``, at any depth."""
    if isinstance(value, dict):
        return {key: without(inner, *names) for key, inner in value.items() if key not in names}
    return [without(inner, *names) for inner in value] if isinstance(value, list) else value


def rows(path: Path, *leave_out: str) -> list[dict]:
    """The JSON lines without their checksums and the keys ``leave_out``."""
    return [without(json.loads(line), "checksum", *leave_out) for line in lines(path)]


def is_free(lock: Path) -> bool:
    """True if no process holds the lock file."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(lock, blocking=False):
            return True
    except Timeout:
        return False


def certified_job(folder: Path) -> Job:
    """The main job with a certificate, on toys in ``folder``, whose timing table is there."""
    asked = {"quality_budget": 0.9, "loss_cap": 0.95, "certify": 40, "date": "2026-01-31"}
    options = save_toys(folder, 120) | FAST | {"trials": TRIALS, "max_new_tokens": 8, "output": "runs"} | asked
    job = Job(command(*typed(options)), folder / "runs" / "default", folder)
    write_cost(job.folder)
    return job


def write_cost(folder: Path) -> None:
    """A timing table that is the same in every run."""
    cache.write(folder / "cost.json", [], COST)
