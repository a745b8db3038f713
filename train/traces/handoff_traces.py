"""Hand-off traces in Parquet shards: one row per position of a text, with both models' distributions there.

Columns of a row: ``prompt`` and ``group`` (ids), ``trajectory`` ("large", "mixed" or "policy") and ``rate`` of random
hand-off, ``prompt_tokens``, ``position``, ``token``, ``writer`` (0 small, 1 large), ``small_token`` and
``large_token`` (each model's best), ``small_logprob`` and ``large_logprob`` of the token written,
``small_logprob_small`` and ``large_logprob_small`` of the small model's best, ``regret`` (nats lost under the large
model by the small model's best token), ``small_repeats`` and ``large_repeats`` (that model's best token would complete
a 6-gram that the answer already holds and the large model's own does not), ``small_ends`` and ``large_ends`` (it is an
EOS), ``kl`` (KL(small || large), nats), and every feature of ``FEATURE_COLUMNS``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from policies import FEATURES
from policies.storage import documents
from policies.storage.atomic import sweep
from policies.storage.documents import FileError
from policies.storage.shards import each_shard
from train.common import atomic
from train.common.schema import checked
from train.quality.guarded_regret import CAP, STOP

FEATURE_COLUMNS = tuple(name for name, f in FEATURES.items() if name != "uniform" and not f.needs_target)
NEEDED = (
    *("prompt", "group", "trajectory", "prompt_tokens", "small_token", "large_token", "regret", "kl"),
    *("small_repeats", "large_repeats", "small_ends", "large_ends", *FEATURE_COLUMNS),
)
TEXT = ("prompt", "group", "trajectory")
FLAGS = ("small_repeats", "large_repeats", "small_ends", "large_ends")
SCHEMA = 3  # of the columns; raised when one of them changes its meaning
GIVE = "collect the traces again, in another folder"


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
    def joined(cls, *parts: Self) -> Self:
        return cls({name: np.concatenate([part[name] for part in parts]) for name in parts[0].columns})

    def where(self, keep: np.ndarray) -> Self:
        return Traces({name: column[keep] for name, column in self.columns.items()})

    def of(self, prompts: set[str], *trajectories: str) -> Self:
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


def open_folder(folder: Path, meta: dict) -> None:
    """Prepare ``folder`` for traces of the run that ``meta`` describes. FileError when it holds another run's."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    path, meta = folder / "meta.json", atomic.plain(meta | {"schema": SCHEMA})
    if not path.exists():
        documents.write(path, meta)
        return
    found = read_meta(folder)
    differing = sorted(key for key in meta.keys() | found.keys() if meta.get(key) != found.get(key))
    if differing:
        fault = f"it holds traces of another run ({', '.join(differing)} differ)"
        raise FileError(folder, fault, "use another --name or --output")


def read_meta(folder: Path) -> dict:
    """The description of the run that wrote ``folder``. FileError when there is none, or it is of another schema."""
    path = folder / "meta.json"
    meta = documents.read(path, GIVE)
    schema = checked(_Meta, meta, path, GIVE).schema
    if schema != SCHEMA:
        raise FileError(path, f"another version wrote it (schema {schema}, this one reads {SCHEMA})", GIVE)
    return meta


def read_traces(folder: Path, shards: int | None = None) -> Traces:
    """The finished shards of ``folder``, in order: all, or the first ``shards``. FileError when there are none."""
    return Traces.joined(*each_traces(folder, shards))


def each_traces(folder: Path, shards: int | None = None) -> Iterator[Traces]:
    """As ``read_traces``, shard by shard: no more than one of them is in memory."""
    for columns in each_columns(folder, (*NEEDED, *FEATURE_COLUMNS), shards):
        position = columns["position"]
        if not ((position == 0) | (position == np.append(-1, position[:-1]) + 1)).all():
            raise FileError(folder, "its rows are not in the order of their positions", GIVE)
        yield Traces(columns)


def each_columns(folder: Path, needed: Sequence[str], first: int | None = None) -> Iterator[dict[str, np.ndarray]]:
    """The columns of each finished shard of ``folder``, or of the ``first`` so many.

    FileError when there are no shards, one cannot be used, or a ``needed`` column is missing or of another type.
    """
    read_meta(folder)
    for columns in each_shard(folder, GIVE, first=first):
        for name in needed:
            kinds = "U" if name in TEXT else "b" if name in FLAGS else "iuf"
            if name not in columns or columns[name].dtype.kind not in kinds:
                raise FileError(folder, f"its shards lack the column {name}, or have it of another type", GIVE)
        yield columns


@dataclass
class _Meta:
    schema: int
