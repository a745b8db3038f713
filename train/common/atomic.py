"""JSON files that are written whole, and JSON lines (jsonl) of rows of one kind."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from policies.storage import documents
from policies.storage.atomic import write
from policies.storage.documents import FileError
from train.common.schema import checked

RUN = "run"
"""the key of a row that names its run"""
ANEW = "delete that line, and what it holds is made anew"


def write_json(path: Path | str, value) -> None:
    """Write ``value`` as JSON; a reader sees the old file or the new one."""
    write(path, json.dumps(value, indent=1).encode())


def plain(value) -> Any:
    """``value`` as JSON has it: tuples become lists, and what JSON does not have becomes text."""
    return json.loads(json.dumps(value, default=str))


def append_rows(path: Path, rows: Iterable[dict]) -> None:
    """Append ``rows`` to the JSON lines ``path`` and wait until they are on disk; in a run's folder they name it."""
    run = fingerprint(path.parent)
    documents.append_rows(path, rows if run is None else [row | {RUN: run} for row in rows])


def read_rows(path: Path, kind: type) -> list[dict]:
    """The rows of the JSON lines ``path``, none without it; each has the fields of ``kind`` (``train.common.rows``).

    A last line that a crash cut short is removed. FileError names any other line that is not what was written, and one
    of another run.
    """
    rows, run = documents.read_rows(path, ANEW), fingerprint(path.parent)
    for number, row in enumerate(rows, 1):
        place = f"{path}, line {number}"
        if row.pop(RUN, run) != run:
            raise FileError(place, "it is of another run", ANEW)
        checked(kind, row, place, ANEW)
    return rows


def fingerprint(folder: Path) -> str | None:
    """The identity of the run in ``folder``: the hash of its run.json; None without one."""
    path = folder / "run.json"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else None
