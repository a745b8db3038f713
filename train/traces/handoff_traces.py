"""Hand-off traces in Parquet shards: one row per position of a text, with both models' distributions there.

Columns of a row: ``prompt`` and ``group`` (ids), ``trajectory`` ("large", "mixed" or "policy") and ``rate`` of random
hand-off, ``prompt_tokens``, ``position``, ``token``, ``writer`` (0 small, 1 large), ``small_token`` and
``large_token`` (each model's best), ``small_logprob`` and ``large_logprob`` of the token written,
``small_logprob_small`` and ``large_logprob_small`` of the small model's best, ``regret`` (nats lost under the large
model by the small model's best token), ``small_repeats`` and ``large_repeats`` (that model's best token would complete
a 6-gram that the answer already holds and the large model's own does not), ``small_ends`` and ``large_ends`` (it is an
EOS), ``kl`` (KL(small || large), nats), and every feature of ``FEATURE_COLUMNS``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet  # datasets would copy every shard that is read into the user's cache

from policies import FEATURES
from policies.storage.atomic import replacing, sweep
from train.common import atomic
from train.quality.guarded_regret import CAP, STOP

FEATURE_COLUMNS = tuple(name for name, f in FEATURES.items() if name != "uniform" and not f.needs_target)
NEEDED = (
    *("prompt", "group", "trajectory", "prompt_tokens", "small_token", "large_token", "regret", "kl"),
    *("small_repeats", "large_repeats", "small_ends", "large_ends", *FEATURE_COLUMNS),
)
SCHEMA = 2


class TraceError(ValueError):
    """Traces that are missing, unfinished or of another run; the message is one sentence."""


@dataclass(frozen=True)
class Traces:
    """Columns as arrays [rows], sorted by trajectory, then by position."""

    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["position"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def table(self, names) -> np.ndarray:
        """float32 [rows, len(names)] of feature columns."""
        return np.stack([self.columns[name] for name in names], 1).astype(np.float32)

    @classmethod
    def joined(cls, *parts: Traces) -> Traces:
        return cls({name: np.concatenate([part[name] for part in parts]) for name in parts[0].columns})

    def where(self, keep: np.ndarray) -> Traces:
        return Traces({name: column[keep] for name, column in self.columns.items()})

    def of(self, prompts: set[str], *trajectories: str) -> Traces:
        """Rows of the given prompts, of the named kinds of trajectory or of all."""
        keep = np.isin(self["prompt"], list(prompts))
        return self.where(keep & np.isin(self["trajectory"], trajectories) if trajectories else keep)

    @cached_property
    def small_cost(self) -> np.ndarray:
        """[rows] in [0, 1] guarded cost of the small model's best token: its clipped regret, and 1 where it repeats or
        goes on although the large model would stop."""
        late = self["large_ends"] & ~self["small_ends"] & (self["regret"] > STOP)
        return np.where(self["small_repeats"] | late, 1.0, np.minimum(self["regret"], CAP) / CAP)

    @cached_property
    def large_cost(self) -> np.ndarray:
        """[rows] guarded cost of the large model's best token: 1 where it continues a loop, else 0."""
        return self["large_repeats"].astype(float)

    @property
    def risk(self) -> np.ndarray:
        """[rows] in [0, 1] loss that escalation saves: nothing in a loop that both models continue."""
        return np.clip(self.small_cost - self.large_cost, 0.0, 1.0)

    @cached_property
    def starts(self) -> np.ndarray:
        """Index of the first row of each trajectory, and the number of rows at the end."""
        return np.append(np.flatnonzero(self["position"] == 0), len(self))

    @cached_property
    def trajectory_of(self) -> np.ndarray:
        """[rows] index of each row's trajectory."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


def write_shard(folder: Path, index: int, columns: dict[str, np.ndarray]) -> None:
    """Write one shard, whole or not at all."""
    with replacing(shard_path(folder, index)) as unfinished:
        parquet.write_table(pa.table(columns), unfinished)


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.parquet"


def open_folder(folder: Path, meta: dict) -> None:
    """Prepare ``folder`` for traces of the run that ``meta`` describes. TraceError when it holds another run's."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    path, meta = folder / "meta.json", atomic.plain(meta | {"schema": SCHEMA})
    if not path.exists():
        atomic.write_json(path, meta)
        return
    found = read_meta(folder)
    differing = sorted(key for key in meta.keys() | found.keys() if meta.get(key) != found.get(key))
    if differing:
        raise TraceError(
            f"{folder} holds traces of another run ({', '.join(differing)} differ); use another --name or --output"
        )


def read_meta(folder: Path) -> dict:
    """The description of the run that wrote ``folder``. TraceError when it is not there or of a newer schema."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        schema = int(meta["schema"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TraceError(f"{folder} is not a folder of traces: its meta.json is missing or damaged") from error
    if schema > SCHEMA:
        raise TraceError(f"{folder} was written by a newer version (schema {schema}, this one reads {SCHEMA})")
    return meta


def read_traces(folder: Path, shards: int | None = None) -> Traces:
    """The finished shards of ``folder``, in order: all, or the first ``shards``. TraceError when there are none."""
    return Traces(read_columns(folder, NEEDED, shards))


def read_columns(folder: Path, needed: Sequence[str], first: int | None = None) -> dict[str, np.ndarray]:
    """The columns of all finished shards of ``folder``, or of the ``first`` so many.

    TraceError when there are no shards, or a ``needed`` column is missing.
    """
    read_meta(folder)
    shards = sorted(folder.glob("shard-*.parquet"))[:first]
    if not shards:
        raise TraceError(f"{folder} holds no shards; collect traces first")
    try:
        data = pa.concat_tables([parquet.read_table(path) for path in shards])
        columns = {name: _array(data[name]) for name in data.column_names}
    except Exception as error:  # pyarrow raises many kinds
        raise TraceError(f"the shards in {folder} cannot be read: {' '.join(str(error).split())}") from error
    missing = [name for name in needed if name not in columns]
    if missing:
        raise TraceError(f"the traces in {folder} lack the column {missing[0]}")
    return columns


def _array(column) -> np.ndarray:
    values = column.to_numpy()
    return values.astype(str) if values.dtype == object else values
