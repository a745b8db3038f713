"""Served traffic against the artifact: batch by batch, in the order in which it was served."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from policies.traffic_log import Counts, Served
from train.monitoring.drift import Drift, Monitor


@dataclass(frozen=True)
class Batch:
    """Some texts that were served one after the other, and their comparison with the reference."""

    last: int  # the number of its last text among all, from 1
    time: float  # of that text
    drift: Drift


@dataclass(frozen=True)
class Verdict:
    """What the batches say together."""

    reference: dict[str, Any]
    batches: list[Batch]
    waiting: int  # texts that are no whole batch yet

    @property
    def moved(self) -> Batch | None:
        """The first batch that is not like the reference."""
        return next((batch for batch in self.batches if batch.drift.moved), None)

    @property
    def sentence(self) -> str:
        """One line: the live shares beside those of the artifact, and whether traffic has moved."""
        texts = self.batches[-1].last if self.batches else 0
        if not self.batches:
            return f"{self.waiting} texts are too few to say: a batch is not whole yet."
        live = ", ".join(f"{name} {self.share(name):.3f} (was {self._was(name):.3f})" for name in self._shares())
        said = self.moved or self.batches[-1]
        where = f"texts up to {said.last:,} of {texts:,}"
        return f"{where}: {live}. {said.drift.sentence}"

    def _shares(self) -> list[str]:
        return [name for name in ("escalated", "accepted") if name in self.reference["columns"]]

    def _was(self, name: str) -> float:
        return self.reference["columns"][name]["mean"]

    def share(self, name: str) -> float:
        """The mean of a column in the batch that the sentence is about."""
        return (self.moved or self.batches[-1]).drift.columns[name]["mean"]


def watch(reference: dict[str, Any], served: Iterable[Served], every: int, level: float) -> Verdict:
    """Compare every ``every`` texts of ``served`` with ``reference``, a dict of ``drift.traffic``.

    level: the probability of any false alarm over the whole log, however often it is read while it grows: the batches
    are the same each time, and share the level as ``Monitor`` says.
    """
    monitor, batches, texts = Monitor(reference, level), [], 0
    waiting: list[Served] = []
    for group in _groups(served, every):
        waiting = group
        if sum(one.texts for one in group) >= every:
            texts += sum(one.texts for one in group)
            batches.append(Batch(texts, group[-1].time, monitor.compare(_joined(group))))
            waiting = []
    return Verdict(reference, batches, sum(one.texts for one in waiting))


def _groups(served: Iterable[Served], every: int) -> Iterator[list[Served]]:
    """Lines in groups of at least ``every`` texts; the last one may have fewer."""
    group: list[Served] = []
    for one in served:
        group.append(one)
        if sum(line.texts for line in group) >= every:
            yield group
            group = []
    if group:
        yield group


def _joined(group: list[Served]) -> dict[str, Counts]:
    return {name: reduce(add, (one.columns[name] for one in group)) for name in group[0].columns}
