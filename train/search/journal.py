"""The journal of a study: Optuna's operations as JSON lines that tell when one of them was changed, lost or doubled.

Optuna's own file backend glues an operation to the torn line that a full disk or a power cut left, and from then on
nobody can read the study. Here the torn line goes before the next operation is written.
"""

import json
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.storages.journal import BaseJournalBackend

from policies.storage.documents import CHECKSUM, FileError, append, cut, sealed, whole_rows

AFTER = "after"
"""the checksum of a line that was there when this one was written"""


class Journal(BaseJournalBackend):
    """The operations in the file ``path``, which several processes append to under a lock.

    FileError names the line that is damaged. Each line holds its checksum and that of the one before, so a line that
    is missing in the middle, or there twice, is noticed too; the last ones may be gone, as when a run was stopped
    earlier. Lines without a checksum are those of an earlier version, and taken as they are.
    """

    def __init__(self, path: Path, remedy: str):
        self.path, self.remedy = path, remedy
        # Optuna's locks are files that stay when a process is killed, and are taken from one that only sleeps.
        self.lock = FileLock(path.with_name(f".{path.name}.lock"))
        self._operations: list[dict[str, Any]] = []
        self._end = 0
        self._seen = {""}
        self._last = ""
        if os.path.lexists(path) and not path.is_file():
            raise FileError(path, "it is not a regular file", remedy)
        path.open("ab").close()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        self._read()
        return iter(self._operations[log_number_from:])

    def append_logs(self, logs: Iterable[dict[str, Any]]) -> None:
        with _undisturbed(), self.lock:
            self._read()
            if self.path.stat().st_size > self._end:
                cut(self.path, self._end)
            self._append(logs)

    def _read(self) -> None:
        """Read what was appended since the last time."""
        with self.path.open("rb") as file:
            file.seek(self._end)
            data = file.read()
        rows, size = whole_rows(data, self.path, self.remedy, before=len(self._operations))
        for row in rows:
            self._check(row)
            self._operations.append(row)
        self._end += size

    def _check(self, row: dict[str, Any]) -> None:
        own = row.get(CHECKSUM)
        if own is None:
            return
        # Not "the last line": where a file system has no locks, two processes may write at once.
        if row.get(AFTER) not in self._seen or own in self._seen:
            place = f"{self.path}, line {len(self._operations) + 1}"
            raise FileError(place, "a line before it is missing, or it is there twice", self.remedy)
        self._seen.add(own)
        self._last = own

    def _append(self, logs: Iterable[dict[str, Any]]) -> None:
        lines, last = [], self._last
        for log in logs:
            row = sealed({AFTER: last} | log)
            last = row[CHECKSUM]
            lines.append(json.dumps(row) + "\n")
        append(self.path, "".join(lines).encode())


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C counts when the block has ended."""
    before, came = signal.getsignal(signal.SIGINT), []
    if threading.current_thread() is not threading.main_thread() or not callable(before):  # nothing will interrupt it
        yield
        return
    signal.signal(signal.SIGINT, lambda *how: came.append(how))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        before(*came[0])
