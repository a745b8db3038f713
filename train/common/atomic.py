"""Files that survive a kill: written whole or not at all, or line by line."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path


def write(path: Path | str, data: bytes) -> None:
    """Write beside ``path``, then move it there: a reader sees the old file or the new one. Makes missing folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what writers of this machine that were killed left in ``folder``, at any depth, before it is written to.

    Files of processes that live, and of other machines (the folder may be shared), are left alone.
    """
    ours = re.compile(rf".+\.{re.escape(platform.node())}\.(\d+)\.tmp")
    for path in folder.rglob("*.tmp"):
        name = ours.fullmatch(path.name)
        if name and not lives(int(name[1])):
            path.unlink(missing_ok=True)


def lives(process: int) -> bool:
    """Whether there is a process of this number on this machine."""
    if os.name != "posix":  # elsewhere asking would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def write_json(path: Path | str, value) -> None:
    write(path, json.dumps(value, indent=1).encode())


def append_rows(path: Path, rows: Sequence[dict]) -> None:
    """Append rows to a jsonl and wait until they are on disk."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[dict]:
    """Rows of a jsonl that is appended to; a last line that a kill cut short is removed from the file."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    if len(whole) < len(lines):
        write(path, b"".join(whole))
    return [json.loads(line) for line in whole]
