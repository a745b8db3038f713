"""The one reader and writer of JSON files of ours: of bounded size and depth, checked, refused in one sentence.

An object holds the checksum of its other values, which tells that a digit was changed on the disk or by a person. An
object without one (written by hand, or by an earlier version) is taken as it is. ``decoding.cost.cache`` reads and
writes its file alike; it may not import this package.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from policies.storage.atomic import naming
from policies.storage.atomic import write as write_atomically

LARGEST = 2**29
"""bytes of a file; the traces of a long run are smaller"""
DEEPEST = 64
"""lists and objects inside each other"""
CHECKSUM = "checksum"
CHANGED = f"it was changed after it was written ({CHECKSUM!r} differs)"


class FileError(ValueError):
    """A file of ours that cannot be used; the message is one sentence: file and place, fault, remedy."""

    def __init__(self, place: Path | str, fault: str, remedy: str):
        super().__init__(f"{place}: {' '.join(fault.split())}; {remedy}")


def write(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` with its checksum; a reader sees the old file or the new one."""
    write_atomically(path, json.dumps(sealed(value), indent=1).encode())


def read(path: Path, remedy: str) -> dict[str, Any]:
    """The object in the file ``path``, without its checksum. FileError, which ends in ``remedy``, for anything else."""
    return verified(parse(read_bytes(path, remedy), path, remedy), path, remedy)


def read_bytes(path: Path, remedy: str) -> bytes:
    """The bytes of a regular file. FileError for a folder, a pipe, a device, a huge file and one that is not there."""
    try:
        found = os.stat(path)  # before it is opened: opening a pipe would wait for ever
        if not stat.S_ISREG(found.st_mode):
            raise FileError(path, "it is not a regular file", remedy)
        if found.st_size > LARGEST:
            raise FileError(path, f"it has {found.st_size:,} bytes, and no file of this program has as many", remedy)
        return Path(path).read_bytes()
    except OSError as error:
        raise FileError(path, f"it cannot be read ({error.strerror})", remedy) from error


def parse(data: bytes, place: Path | str, remedy: str) -> dict[str, Any]:
    """The JSON object in ``data``, its checksum unread. FileError for anything else, duplicate keys included."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_object)
    except RecursionError as error:
        raise FileError(place, "it is nested too deep", remedy) from error
    except ValueError as error:
        raise FileError(place, f"it is not valid JSON ({error})", remedy) from error
    if not isinstance(value, dict):
        raise FileError(place, f"it holds {show(value)}, not a JSON object", remedy)
    if _depth(value) > DEEPEST:
        raise FileError(place, "it is nested too deep", remedy)
    return value


def verified(value: dict[str, Any], place: Path | str, remedy: str) -> dict[str, Any]:
    """``value`` without its checksum. FileError when the checksum is not that of the rest."""
    rest = {key: item for key, item in value.items() if key != CHECKSUM}
    if CHECKSUM in value and value[CHECKSUM] != checksum(rest):
        raise FileError(place, CHANGED, remedy)
    return rest


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """``value`` and its checksum."""
    return value | {CHECKSUM: checksum(value)}


def checksum(value: dict[str, Any]) -> str:
    """16 hexadecimal digits of the sha256 of ``value`` as JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def append_rows(path: Path, rows: Iterable[dict]) -> None:
    """Append ``rows`` to the JSON lines ``path`` and wait until they are on disk."""
    append(path, "".join(json.dumps(sealed(row)) + "\n" for row in rows).encode())


def append(path: Path, data: bytes) -> None:
    """Append ``data`` to ``path`` and wait until it is on disk."""
    with naming(path), path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path, remedy: str) -> list[dict[str, Any]]:
    """The rows of the JSON lines ``path``, none where it is missing.

    A last line that a crash cut short is removed from the file, and one line is logged. FileError names the line of
    anything else that is no row.
    """
    if not os.path.lexists(path):
        return []
    data = read_bytes(path, remedy)
    rows, end = whole_rows(data, path, remedy)
    if end < len(data):
        cut(path, end)
    return [verified(row, path, remedy) for row in rows]


def whole_rows(data: bytes, path: Path, remedy: str, before: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The rows in ``data``, with their checksums, and the bytes that they take: less than all if the last is cut short.

    before: lines of ``path`` that come before ``data``.
    """
    rows, end = [], 0
    *lines, tail = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = parse(line, f"{path}, line {before + number}", remedy)
            verified(row, f"{path}, line {before + number}", remedy)
        except FileError:
            if number == len(lines) and not tail:
                break  # a power cut may leave the end of the line without its middle
            raise
        rows.append(row)
        end += len(line) + 1
    return rows, end


def cut(path: Path, end: int) -> None:
    """Cut ``path`` after ``end`` bytes, and log one line about it."""
    logging.getLogger(__name__).warning("%s: its last line was cut short, by a crash or a full disk; dropped", path)
    with suppress(PermissionError):  # of a folder that is only read
        os.truncate(path, end)  # in place: a full disk may have no room for a copy


def show(value: Any) -> str:
    """The repr of a value, cut to 60 characters for an error message."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deep {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {show(twice)} comes twice")
    return found


def _depth(value: dict) -> int:
    """How many lists and objects are inside each other, counted without recursion."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [one for items in inner for one in items if isinstance(one, dict | list)]
    return depth
