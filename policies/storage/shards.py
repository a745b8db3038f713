"""Tables of ours: Parquet shards of one schema and without nulls, in a folder that lists their checksums."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from policies.storage.atomic import replacing
from policies.storage.documents import FileError, append_rows, read_bytes, read_rows

CHECKSUMS = "checksums.jsonl"
"""one line for each shard that was written; a shard without a line is of an earlier version, and taken as it is"""


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.parquet"


def write_shard(folder: Path, index: int, columns: dict[str, np.ndarray]) -> None:
    """Write one shard, whole or not at all; its checksum is listed before it is there."""
    path = shard_path(folder, index)
    with replacing(path) as unfinished:
        _write(unfinished, columns)
        _list(path, unfinished)


def write_table(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Write the file that a shard will be (``take_shard``), whole or not at all."""
    with replacing(path) as unfinished:
        _write(unfinished, columns)


def take_shard(folder: Path, index: int, table: Path) -> None:
    """Make the file ``table``, on the same file system, a shard; its checksum is listed before it is there."""
    path = shard_path(folder, index)
    _list(path, table)
    os.replace(table, path)


def _write(path: Path, columns: dict[str, np.ndarray]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet  # datasets would copy every shard that is read into the user's cache

    parquet.write_table(pa.table(columns), path)


def _list(path: Path, table: Path) -> None:
    append_rows(path.with_name(CHECKSUMS), [{"shard": path.name, "sha256": _sha256(table.read_bytes())}])


def read_shards(
    folder: Path, remedy: str, names: Sequence[str] | None = None, first: int | None = None
) -> dict[str, np.ndarray]:
    """The columns [rows] of all shards in ``folder``, or of the ``first`` so many; all columns, or those of ``names``.

    FileError, which ends in ``remedy``, when there is no shard, when one was changed or is not Parquet, when schemas
    differ, and for nulls and missing columns.
    """
    shards = list(each_shard(folder, remedy, names, first))
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


def each_shard(
    folder: Path, remedy: str, names: Sequence[str] | None = None, first: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """As ``read_shards``, shard by shard: no more than one of them is in memory."""
    listed = {row.get("shard"): row.get("sha256") for row in read_rows(folder / CHECKSUMS, remedy)}
    paths = sorted(folder.glob("shard-*.parquet"))[:first]
    if not paths:
        raise FileError(folder, "it holds no shards", remedy)
    for name in listed.keys() - {path.name for path in paths} if first is None else ():
        raise FileError(folder / str(name), "it is missing", remedy)
    schema = None
    for path in paths:
        table = _table(path, listed.get(path.name), names, remedy)
        schema = table.schema if schema is None else schema
        if not table.schema.equals(schema):
            raise FileError(path, f"its columns are not those of {paths[0].name}", remedy)
        yield {name: _array(table[name]) for name in table.column_names}


def _table(path: Path, listed: str | None, names: Sequence[str] | None, remedy: str):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    data = read_bytes(path, remedy)
    if listed is not None and _sha256(data) != listed:
        raise FileError(path, "it was changed after it was written (its sha256 differs)", remedy)
    try:
        table = parquet.read_table(pa.BufferReader(data))
        table.validate(full=True)
    except Exception as error:  # pyarrow raises many kinds
        raise FileError(path, f"it cannot be read ({error})", remedy) from error
    for name in names or ():
        if name not in table.column_names:
            raise FileError(path, f"it lacks the column {name!r}", remedy)
    for field, column in zip(table.schema, table.columns, strict=True):
        if not _known(field.type) or column.null_count or table.column_names.count(field.name) > 1:
            raise FileError(path, f"its column {field.name!r} is not one of numbers, or one of text", remedy)
    return table if names is None else table.select(list(dict.fromkeys(names)))


def _known(kind) -> bool:
    import pyarrow.types as types

    return any(of(kind) for of in (types.is_boolean, types.is_integer, types.is_floating, types.is_string))


def _array(column) -> np.ndarray:
    values = column.to_numpy()
    return values.astype(str) if values.dtype == object else values


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
