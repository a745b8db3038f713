"""The log of what a policy saw and decided where it is served: its one format, writer and reader.

A line is a JSON object, about one text or several that were written together:

    {"time": 1764328000.1, "policy": "5d41402abc4b", "texts": 1, "steps": 57,
     "columns": {"entropy": {"steps": 57, "sum": 61.2, "below": [3, 9, 14, 20, 27, 33, 40, 44, 51]}, ...}}

``columns`` are the features that the policy reads, ``escalated`` and ``accepted`` (``step_columns``). ``steps`` counts
those in which a column was known; ``below`` counts those up to each of the ``cuts`` that policy.json has for it, the
deciles of the texts that the policy was measured on. No text and no token is in it. ``policy`` names the artifact.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policies.features.step_recorder import StepRecorder
from policies.policy import Policy
from policies.storage.documents import FileError, whole_rows

REMEDY = "give a file that policies.traffic_log.TrafficLog wrote"


@dataclass(frozen=True)
class Counts:
    """What a log keeps of a column."""

    steps: int
    sum: float
    below: list[int]

    def __add__(self, other: Counts) -> Counts:
        below = [mine + theirs for mine, theirs in zip(self.below, other.below, strict=True)]
        return Counts(self.steps + other.steps, self.sum + other.sum, below)


def counted(values: np.ndarray, cuts: list[float]) -> Counts:
    """The counts of a column [n]; what is not known (NaN) is left out."""
    known = values[~np.isnan(values)]
    return Counts(len(known), float(known.sum()), (known[:, None] <= np.array(cuts)).sum(0).tolist())


def reference_of(policy: Policy) -> dict[str, Any]:
    """The steps that ``policy`` was measured on, which its file holds. ValueError where it holds none."""
    found = policy.provenance.get("traffic")
    if not found:
        raise ValueError("the policy holds no traffic to compare with; tune one with --method backoff")
    return found


def name_of(policy: Policy) -> str:
    """12 digits that tell the artifacts apart whose lines can be compared with one reference."""
    cuts = {name: one["cuts"] for name, one in reference_of(policy)["columns"].items()}
    said = [policy.kind, policy.names, float(policy.threshold), cuts]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]


class TrafficLog:
    """Appends lines to the file ``path`` about the texts that a decoder writes with ``log.policy``.

    ``Backoff([small, large], log.policy)`` decides as with ``policy`` itself; ``log.write()`` after each ``generate``.
    A decoder needs no more than these two, so it imports nothing of this package. ValueError for a policy without a
    reference. Several processes may append to one file.
    """

    def __init__(self, policy: Policy, path: Path | str):
        self.columns, self.name, self.path = reference_of(policy)["columns"], name_of(policy), Path(path)
        self.policy = StepRecorder(policy)

    def write(self, texts: int = 1) -> None:
        """Append a line about the ``texts`` that were written since the last call; none where no step was decided."""
        seen = self.policy.take()
        if not seen:
            return
        found = {name: asdict(counted(seen[name], one["cuts"])) for name, one in self.columns.items()}
        about = {"time": round(time.time(), 3), "policy": self.name, "texts": texts, "steps": len(seen["escalated"])}
        with self.path.open("a", encoding="utf-8") as file:  # one short write, which no other process splits
            file.write(json.dumps(about | {"columns": found}) + "\n")


@dataclass(frozen=True)
class Served:
    """A line: ``texts`` that were written together."""

    time: float
    texts: int
    columns: dict[str, Counts]


def read_log(path: Path, policy: Policy) -> Iterator[Served]:
    """The lines of ``path`` about ``policy``, in their order; those about other artifacts are left out.

    A last line that is being written is left out too. FileError for anything else that is no line.
    """
    columns, name = reference_of(policy)["columns"], name_of(policy)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(path, f"it cannot be read ({error.strerror})", REMEDY) from None
    for number, row in enumerate(whole_rows(data, path, REMEDY)[0], 1):
        if row.get("policy") == name:
            yield _served(row, columns, f"{path}, line {number}")


def _served(row: dict[str, Any], columns: dict[str, Any], place: str) -> Served:
    try:
        found = {name: Counts(**row["columns"][name]) for name in columns}
        fits = all(_fits(found[name], len(one["cuts"])) for name, one in columns.items())
        served = Served(float(row["time"]), int(row["texts"]), found)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(place, f"it is no line about served texts ({error!r})", REMEDY) from None
    if not fits or served.texts < 1:
        raise FileError(place, "its counts contradict each other", REMEDY)
    return served


def _fits(counts: Counts, cuts: int) -> bool:
    below = [0, *counts.below, counts.steps]
    return len(counts.below) == cuts and below == sorted(below)
