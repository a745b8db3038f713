"""Where prompts come from: one function a format, each of which yields the rows of a file, and the sets of the hub."""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
import reprlib
import stat
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from train.data.errors import PromptError, at, show
from train.data.options import PromptOptions
from train.data.records import COLUMNS, Record, line_record, table_record

HUB_NAME = re.compile(
    r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^:\[\]]+)(?=:))?(?::(?P<split>\w+(?:\[[^\]]*\])?))?"
)
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # begins with that of UTF-16, so it comes first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
OBJECT = 'such as {"prompt": "..."}'


class Row(NamedTuple):
    """One row of a file, before it is checked."""

    where: str
    values: Any
    default_id: str


class Format(NamedTuple):
    rows: Callable[[Path, str], Iterator[Row]]
    """from the path and how messages show it"""
    record: Callable[[str, dict, str, PromptOptions], Record]


def read_records(source: str | Path, options: PromptOptions) -> list[Record]:
    """The checked records of a file or a hub set. PromptError, one sentence, for whatever cannot be read."""
    path, shown = Path(source), show(str(source))
    form = FORMATS.get(path.suffix.lower())
    if os.path.isdir(path):  # unlike Path.is_dir, it never raises, even if the source is a whole prompt by mistake
        raise PromptError(f"{shown} is a directory; give a {NAMES} file, or a hub name")
    if form is None and os.path.isfile(path):
        raise PromptError(f"{shown} has an unknown suffix; give a {NAMES} file")
    if form is not None:
        records = [_checked(form, row, options) for row in form.rows(path, shown)]
    else:
        match = HUB_NAME.fullmatch(source) if isinstance(source, str) else None
        if match is None or path.suffix[1:].isalpha():  # prompts.yaml is a file, owner/name-1.5 is not
            raise PromptError(f"{shown} does not exist; give a {NAMES} file, or a hub name (name:split)")
        records = _hub_records(match["name"], match["config"], match["split"] or "train", options)
    if not records:
        raise PromptError(f"{shown} holds no prompts; at least one line or row must hold one")
    return records


def _checked(form: Format, row: Row, options: PromptOptions) -> Record:
    with at(row.where):
        if not isinstance(row.values, dict):
            raise PromptError(f"not a JSON object but {reprlib.repr(row.values)}; write one {OBJECT}")
        return form.record(row.where, row.values, row.default_id, options)


def _json_lines(path: Path, shown: str) -> Iterator[Row]:
    for number, line in _lines(path, shown):
        where = f"{shown}, line {number}"
        with at(where):
            values = _parsed(line, f"write one object {OBJECT}")
        yield Row(where, values, f"line-{number}")


def _text_lines(path: Path, shown: str) -> Iterator[Row]:
    for number, line in _lines(path, shown):
        yield Row(f"{shown}, line {number}", {"prompt": line}, f"line-{number}")


def _json_list(path: Path, shown: str) -> Iterator[Row]:
    text = read_text_file(path, shown)
    with at(shown):
        found = _parsed(text, "write one list of objects, or name the file .jsonl if each has a line")
        if isinstance(found, dict) and not any(key in found for key in COLUMNS):
            raise PromptError(f"an object with {reprlib.repr(list(found))}; write a list of objects {OBJECT}")
        found = [found] if isinstance(found, dict) else found
        if not isinstance(found, list):
            raise PromptError(f"not a list but {reprlib.repr(found)}; write a list of objects {OBJECT}")
    for number, item in enumerate(found, start=1):
        yield Row(f"{shown}, item {number}", {"prompt": item} if isinstance(item, str) else item, f"item-{number}")


def _csv_rows(path: Path, shown: str) -> Iterator[Row]:
    text = read_text_file(path, shown)
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    csv.field_size_limit(2**31 - 1)  # 131,072 characters otherwise, and a prompt may be longer
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header, end, number = None, 0, 0
    while True:
        where = f"{shown}, line {end + 1}"
        with at(where):
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise PromptError(f"not valid CSV ({error}); put text with quotes or line breaks in quotes") from None
            if fields is None:
                return
            _check_fields(fields, header, delimiter)
        end = reader.line_num
        if header and fields:
            yield Row(where, dict(zip(header, fields, strict=True)), f"row-{number}")
            number += 1
        header = header or fields


def _check_fields(fields: list[str], header: list[str] | None, delimiter: str) -> None:
    if not header and len(set(fields)) < len(fields):
        raise PromptError(f"the header {fields} names a column twice; rename one")
    if header and fields and len(fields) != len(header):
        found = f"{len(fields)} fields, and the header names {len(header)}"
        raise PromptError(f"{found}; put text that holds {delimiter!r} in quotes")


def _parquet_rows(path: Path, shown: str) -> Iterator[Row]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    _check_file(path, shown)
    try:
        rows = ParquetFile(path).read().to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise PromptError(f"{shown} is not valid Parquet ({show(str(error))}); write it again") from error
    for number, row in enumerate(rows):
        yield Row(f"{shown}, row {number}", row, f"row-{number}")


FORMATS = {
    ".jsonl": Format(_json_lines, line_record),
    ".ndjson": Format(_json_lines, line_record),
    ".json": Format(_json_list, line_record),
    ".txt": Format(_text_lines, line_record),
    ".csv": Format(_csv_rows, table_record),
    ".tsv": Format(_csv_rows, table_record),
    ".parquet": Format(_parquet_rows, table_record),
}
NAMES = ".jsonl, .json, .csv, .parquet or .txt"


def _lines(path: Path, shown: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, and their numbers."""
    yield from ((n, line) for n, raw in enumerate(_raw_lines(path, shown), start=1) if (line := raw.strip()))


def _raw_lines(path: Path, shown: str) -> Iterator[str]:
    """All lines. A file of UTF-8 is not read as a whole: it may hold millions of prompts."""
    _check_file(path, shown)
    try:
        with path.open("rb") as file:
            if file.peek(4).startswith(tuple(BYTE_ORDER_MARKS)):
                yield from read_text_file(path, shown).split("\n")
                return
            for number, line in enumerate(file, start=1):
                yield _decoded(line, "utf-8-sig" if number == 1 else "utf-8", shown, number)
    except OSError as error:
        raise PromptError(f"{shown} cannot be read ({show(str(error))}); check the file") from None


def _parsed(text: str, right: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "a number or a nesting that is too long")
        line = f" in line {error.lineno}" if getattr(error, "lineno", 1) > 1 else ""
        raise PromptError(f"invalid JSON{line} ({reason}); {right}") from None


def _check_file(path: Path, shown: str) -> None:
    """PromptError for anything but a regular file that holds something; a pipe would be waited for."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise PromptError(f"{shown} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        raise PromptError(f"{shown} cannot be read ({show(str(error))}); check the file") from None
    if not stat.S_ISREG(found.st_mode):
        raise PromptError(f"{shown} is not a regular file; copy what it holds into one")
    if not found.st_size:
        raise PromptError(f"{shown} is empty; it must hold text")


def read_text_file(path: Path, shown: str) -> str:
    """The text of a file in UTF-8, or in the encoding that its byte order mark names."""
    _check_file(path, shown)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PromptError(f"{shown} cannot be read ({show(str(error))}); check the file") from None
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8-sig")
    return _decoded(content, encoding, shown)


def _decoded(content: bytes, encoding: str, shown: str, first: int = 1) -> str:
    """``content``, whose first line has the number ``first``, as text. PromptError names the line of a wrong byte."""
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if not encoding.startswith("utf-8"):
            raise PromptError(f"{shown} is not valid {encoding.upper()}; save the file as UTF-8") from None
        number = error.object.count(b"\n", 0, error.start) + first
        found = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        raise PromptError(f"{shown}, line {number}: {found}; save the file as UTF-8") from None
    if "\0" in text:
        number = text.count("\n", 0, text.index("\0")) + first
        raise PromptError(f"{shown}, line {number}: a NUL, as in UTF-16 without its mark; save the file as UTF-8")
    return text


def _hub_records(name: str, config: str | None, split: str, options: PromptOptions) -> list[Record]:
    try:
        from datasets import load_dataset
    except ImportError:
        message = f"{name} is not a file, and fetching it from the hub needs 'datasets'; pip install datasets"
        raise PromptError(message) from None
    try:
        rows = load_dataset(name, config, split=split)
    except Exception as error:
        raise PromptError(
            f"{name} is not a file, and the hub set {name} (config {config}, split {split}) cannot be loaded: "
            f"{show(' '.join(str(error).split()))}; give a {NAMES} file, or name:config:split"
        ) from error
    if not options.columns and not set(COLUMNS) & set(rows.column_names):
        raise PromptError(f"{name}: columns {rows.column_names}; one must be named {', '.join(COLUMNS)}")
    rows = (row.items() for row in rows)
    values = ({key: value for key, value in row if key != "id"} for row in rows)  # ids of sets are not always unique
    return [
        _checked(FORMATS[".parquet"], Row(f"{name}:{split}, row {number}", row, f"row-{number}"), options)
        for number, row in enumerate(values)
    ]
