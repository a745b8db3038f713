"""Random damage to a file: bytes, lines and JSON values changed, doubled or lost, or something else in its place."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck
from hypothesis import strategies as st

QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
ODD = [None, [], {}, "text", "0.5", True, 0, -1, 0.5, float("nan"), float("inf"), 1e300, 10**400, "DEEP"]
DEEP = "[" * 10**5 + "]" * 10**5


def mutated(draw, data: bytes, form: str | None, other: Callable[[], bytes] | None = None) -> bytes | str | None:
    """``data`` after one mutation, what stands in its place, or None where it is gone.

    form: "json", "lines" of JSON, or None. other: makes the file as another run would have.
    """
    kinds = ["cut", "flip", "nul", "junk", "tail", "empty", "gone", "folder", "pipe"] + ["other run"] * bool(other)
    if form is not None:
        kinds += 4 * ["value", "no key", "double key"]
    if form == "lines":
        kinds += 2 * ["no line", "double line", "swapped lines"]
    kind = draw(st.sampled_from(kinds))
    where = draw(st.integers(0, len(data) - 1))
    if "line" in kind:
        return changed_lines(draw, kind, data)
    if kind in ("value", "no key", "double key"):
        return changed_json(draw, kind, data, form == "lines")
    size = draw(st.integers(1, 64))
    changes = {
        "cut": lambda: data[:where],
        "flip": lambda: data[:where] + bytes([data[where] ^ draw(st.integers(1, 255))]) + data[where + 1 :],
        "nul": lambda: data[:where] + bytes(min(size, len(data) - where)) + data[where + size :],
        "junk": lambda: data[:where] + draw(st.binary(min_size=1, max_size=8)) + data[where:],
        "tail": lambda: data + draw(st.sampled_from([b"\0" * size, b"{", b"garbage\n", b"\n", b"\xff\xfe"])),
        "empty": lambda: b"",
        "gone": lambda: None,
        "other run": other,
    }
    return changes[kind]() if kind in changes else kind


def changed_lines(draw, kind: str, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    i, j = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    if kind == "no line":
        del lines[i]
    elif kind == "double line":
        lines.insert(j, lines[i])
    else:
        lines[i], lines[j] = lines[j], lines[i]
    return b"".join(lines)


def changed_json(draw, kind: str, data: bytes, lines: bool) -> bytes:
    parts = data.splitlines(keepends=True) if lines else [data]
    i = draw(st.integers(0, len(parts) - 1))
    document = json.loads(parts[i])
    *above, last = draw(st.sampled_from([place for place in places(document) if place]))
    parent = document
    for key in above:
        parent = parent[key]
    if kind == "no key":
        del parent[last]
    elif kind == "value" or isinstance(parent, list):
        parent[last] = draw(st.sampled_from(ODD))
    else:
        parent[last + "\0"] = draw(st.sampled_from(ODD))
    text = json.dumps(document, indent=None if lines else 1).replace("\\u0000", "").replace('"DEEP"', DEEP)
    parts[i] = text.encode() + b"\n" * lines
    return b"".join(parts)


def places(value, path=()):
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def put(path: Path, content: bytes | str | None) -> None:
    path.unlink()
    if content == "folder":
        path.mkdir()
    elif content == "pipe":
        os.mkfifo(path)
    elif content is not None:
        path.write_bytes(content)


def restore(path: Path, content: bytes) -> None:
    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    path.write_bytes(content)
