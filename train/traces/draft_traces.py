"""Draft traces: the draft model's steps at every position of the target's own text, and on past each of its mistakes.

They suffice to replay speculative decoding exactly (``train.replay.speculative``). One row per step of a draft:

* ``depth`` 0: the draft is still on the target's text, and ``token`` is the target's.
* ``depth`` d > 0: the draft went wrong at ``position`` - d and has gone on from there. The continuation depends on that
  position alone, not on where the round began, so one per mismatch holds for every policy and draft length. It is
  logged up to the longest draft.
* ``depth`` 0 with ``token`` -1: the answer has ended, and the draft goes on after its EOS.

Columns: ``prompt``, ``group``, ``prompt_tokens``, ``position``, ``depth``, ``token``, ``drafted`` (the draft's own
token; in sampled text the one with which it goes on after a rejection), ``small_logprob`` and ``large_logprob`` of
``token`` after temperature and filters, ``target_entropy`` (nats), ``last_token``, and ``STEP_FEATURES``. Features that
depend on the round (since_large, agreed, large_entropy, moving averages) are computed in the replay.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from policies import FEATURES
from policies.storage.documents import FileError
from train.common.schema import checked
from train.traces.handoff_traces import FEATURE_COLUMNS, GIVE, each_columns, read_meta
from train.traces.reservoir import TEXT_ROWS, Reservoir, prompt_keys

OF_THE_ROUND = ("since_large", "agreed", "large_entropy")
STEP_FEATURES = tuple(n for n in FEATURE_COLUMNS if n not in OF_THE_ROUND and FEATURES[n].averages is None)
NEEDED = (
    *("prompt", "group", "prompt_tokens", "position", "depth", "token", "drafted", "last_token"),
    *("small_logprob", "large_logprob", "target_entropy", *STEP_FEATURES),
)
DRAFT_SCHEMA = 2


@dataclass(frozen=True)
class DraftTraces:
    """Columns [rows], sorted by prompt, then by the position at which a draft leaves the text, then by depth.

    ``longest`` draft and ``budget``, the longest answer, bound what can be replayed from them.
    """

    columns: dict[str, np.ndarray]
    longest: int
    budget: int
    there: frozenset[str] = frozenset()
    """the prompts of all shards, of which these may be a sample"""

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    @cached_property
    def on_path(self) -> np.ndarray:
        """[positions] rows of the target's text, past the end included."""
        return np.flatnonzero(self["depth"] == 0)

    @cached_property
    def first(self) -> np.ndarray:
        """[prompts] index into ``on_path`` of each prompt's first position."""
        return np.flatnonzero(self["position"][self.on_path] == 0)

    @cached_property
    def tokens(self) -> np.ndarray:
        """[prompts] tokens of each answer."""
        return np.add.reduceat((self["token"][self.on_path] >= 0).astype(int), self.first)

    @cached_property
    def prompt_tokens(self) -> np.ndarray:
        """[prompts] tokens of each prompt."""
        return self["prompt_tokens"][self.on_path[self.first]]

    @cached_property
    def answers(self) -> dict[str, list[int]]:
        """The target's own answer to each prompt, as token ids, EOS included."""
        names, texts = self["prompt"][self.on_path[self.first]], np.split(self["token"][self.on_path], self.first[1:])
        return {name: text[text >= 0].tolist() for name, text in zip(names.tolist(), texts, strict=True)}

    @cached_property
    def chance(self) -> np.ndarray:
        """[positions] probability, given the text, that a drafted token is accepted there: min(1, q / p) of ``token``.

        0 or 1 in greedy text, and 1 past the end, where the logged draft follows itself.
        """
        rows = self.on_path
        ratio = np.minimum(self["small_logprob"][rows] - self["large_logprob"][rows], 0.0)
        return np.where(self["token"][rows] >= 0, np.exp(ratio), 1.0)

    def of(self, prompts: set[str]) -> Self:
        """The traces of the given prompts."""
        keep = np.isin(self["prompt"], list(prompts))
        return DraftTraces({name: column[keep] for name, column in self.columns.items()}, self.longest, self.budget)

    def tiled(self, times: int) -> Self:
        """The same prompts ``times`` over, to time the replay of many."""
        return DraftTraces({n: np.tile(c, times) for n, c in self.columns.items()}, self.longest, self.budget)


def read_drafts(folder: Path, seed: int = 0) -> DraftTraces:
    """The finished shards of ``folder``, all or, where they are many, the prompts of a sample (``Reservoir``).

    FileError when it holds none, other traces, or those of a newer version.
    """
    found = read_meta(folder)
    if "drafts" not in found:
        raise FileError(folder, "it holds traces of hand-offs, not of drafts", "collect draft traces in another folder")
    meta = checked(_Meta, found, folder / "meta.json", GIVE)
    if meta.drafts > DRAFT_SCHEMA:
        fault = f"a newer version wrote it (drafts {meta.drafts}, this one reads {DRAFT_SCHEMA})"
        raise FileError(folder, fault, GIVE)
    texts, there = Reservoir(TEXT_ROWS), set()
    for columns in each_columns(folder, NEEDED):
        there |= set(columns["prompt"].tolist())
        texts.add(columns, prompt_keys(columns["prompt"], seed))
    return DraftTraces(texts.take(), meta.longest, meta.max_new_tokens, frozenset(there))


@dataclass
class _Meta:
    drafts: int
    longest: int
    max_new_tokens: int
