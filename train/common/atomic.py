"""JSON files that are written whole, and JSON lines (jsonl) of rows of one kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from policies.storage import documents
from policies.storage.atomic import write
from policies.storage.documents import append_rows as append_rows
from train.common.schema import checked

ANEW = "delete that line, and what it holds is made anew"


def write_json(path: Path | str, value) -> None:
    """Write ``value`` as JSON; a reader sees the old file or the new one."""
    write(path, json.dumps(value, indent=1).encode())


def plain(value) -> Any:
    """``value`` as JSON has it: tuples become lists, and what JSON does not have becomes text."""
    return json.loads(json.dumps(value, default=str))


def read_rows(path: Path, kind: type = dict) -> list[dict]:
    """The rows of the JSON lines ``path``, each an object with the fields of the dataclass ``kind``; none without it.

    A last line that a crash cut short is removed. FileError names any other line that is not what was written.
    """
    rows = documents.read_rows(path, ANEW)
    for number, row in enumerate(rows, 1):
        checked(kind, row, f"{path}, line {number}", ANEW)
    return rows
