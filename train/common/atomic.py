"""JSON files that are written whole, and JSON lines (jsonl) that lose at most the line that a kill cut short."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policies.storage.atomic import write


def write_json(path: Path | str, value) -> None:
    """Write ``value`` as JSON; a reader sees the old file or the new one."""
    write(path, json.dumps(value, indent=1).encode())


def plain(value) -> Any:
    """``value`` as JSON has it: tuples become lists, and what JSON does not have becomes text."""
    return json.loads(json.dumps(value, default=str))


def append_rows(path: Path, rows: Sequence[dict]) -> None:
    """Append ``rows`` to the jsonl ``path`` and wait until they are on disk."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[dict]:
    """The rows of the jsonl ``path``, none where it is missing; a last line that a kill cut short is removed."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    if len(whole) < len(lines):
        write(path, b"".join(whole))
    return [json.loads(line) for line in whole]
