"""A stage of a job, cut into shards: all that making them takes, as JSON, so that any process can make one.

A shard exists or does not. What it holds depends on its task, the settings of its stage and the models, and on nothing
else: seeds are part of the task.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol

from train.common import atomic
from train.workers.blueprint import Blueprint
from train.workers.pair import Pair

KINDS = {
    "handoff-traces": "train.traces.collect_handoff:HandoffShards",
    "policy-traces": "train.traces.collect_handoff:PolicyShards",
    "draft-traces": "train.traces.collect_drafts:DraftShards",
    "texts": "train.evaluation.text_shards:TextShards",
    "answers": "train.distillation.target_shards:AnswerShards",
    "labels": "train.distillation.target_shards:LabelShards",
    "method-texts": "experiments.comparison.text_shards:MethodShards",
}
"""The makers of shards by the name of their kind, each a ``ShardMaker``; a new kind is a class and a line here."""


class ShardMaker(Protocol):
    """Makes the shards of a stage, one by one."""

    def __init__(self, pair: Pair, settings: dict[str, Any], decoders: dict[str, Any]):
        """``settings`` are those of the stage; ``decoders`` those of its blueprints, by name."""

    def __call__(self, task: dict[str, Any], path: Path) -> None:
        """Make the shard of ``task`` and write it to ``path``, whole or not at all."""


@dataclass(frozen=True)
class Stage:
    """The missing shards of a stage. They are made in ``folder``, beside what comes of them."""

    kind: str  # of ``KINDS``
    title: str  # what progress calls it
    folder: Path
    settings: dict[str, Any]
    tasks: dict[int, dict[str, Any]]  # by number; like the settings they are JSON
    blueprints: dict[str, Blueprint] = field(default_factory=dict)

    @property
    def portable(self) -> bool:
        """Whether other processes can make its shards."""
        return all(one.portable for one in self.blueprints.values())

    def maker(self, pair: Pair) -> ShardMaker:
        """What makes its shards in this process."""
        decoders = {name: one.decoder for name, one in self.blueprints.items()}
        return resolve_name(KINDS[self.kind])(pair, self.settings, decoders)

    def digest(self, pair: Pair) -> str:
        """A hash of all that its shards have in common: the models, the settings and the decoders."""
        decoders = {name: one.digest() for name, one in self.blueprints.items()}
        return _hash([self.kind, self.settings, decoders, pair.identities()])

    def names(self) -> dict[int, str]:
        """The names of its shards by number, in their order; tasks of one number that differ have different names."""
        return {number: f"{number:06d}-{_hash(self.tasks[number])}" for number in sorted(self.tasks)}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(atomic.plain(value), sort_keys=True).encode()).hexdigest()[:12]
