"""Draft traces: what the draft says at every position of the target's own text, and where it goes when it is wrong.

They are enough to replay speculative decoding exactly (``train.replay.speculative``). One row per step of a draft:

* ``depth`` 0: the draft stands on the true text. ``token`` is the target's.
* ``depth`` d > 0: the draft has gone on from its own wrong token at ``position`` - d. This depends on that position
  alone, not on where the round began, so one continuation per mismatch holds for every policy and draft length. It is
  logged to the longest draft, never cut by a policy.
* ``depth`` 0 with ``token`` -1: past the end. A draft does not foresee that the EOS it wrote ends the answer.

Columns: ``prompt``, ``group``, ``prompt_tokens``, ``position``, ``depth``, ``token``, ``drafted`` (the draft's own
token; in sampled text the one it draws when it is rejected), ``small_logprob`` and ``large_logprob`` of ``token``
after temperature and filters, ``target_entropy`` (nats), ``last_token``, and ``STEP_FEATURES``. What depends on the
round (since_large, agreed, large_entropy, moving averages) is no column: replay works it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from policies import FEATURES
from train.traces.handoff_traces import FEATURE_COLUMNS, TraceError, read_columns, read_meta

OF_THE_ROUND = ("since_large", "agreed", "large_entropy")
STEP_FEATURES = tuple(n for n in FEATURE_COLUMNS if n not in OF_THE_ROUND and FEATURES[n].averages is None)
NEEDED = (
    "prompt",
    "group",
    "prompt_tokens",
    "position",
    "depth",
    "token",
    "drafted",
    "small_logprob",
    "large_logprob",
    "target_entropy",
    "last_token",
)
DRAFT_SCHEMA = 1


@dataclass(frozen=True)
class DraftTraces:
    """Columns [rows] in the order of prompts, then of the position where a draft leaves the text, then of depth.

    ``longest`` is the longest draft, ``budget`` the longest answer that they can replay.
    """

    columns: dict[str, np.ndarray]
    longest: int
    budget: int

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    @cached_property
    def on_path(self) -> np.ndarray:
        """[positions] rows of the true text, past the end included."""
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
        """The target's own text of each prompt, as token ids, EOS included."""
        names, texts = self["prompt"][self.on_path[self.first]], np.split(self["token"][self.on_path], self.first[1:])
        return {name: text[text >= 0].tolist() for name, text in zip(names.tolist(), texts, strict=True)}

    @cached_property
    def chance(self) -> np.ndarray:
        """[positions] that a draft is accepted there, given the text: min(1, q / p) of the token written.

        0 or 1 in greedy text. Past the end the draft follows itself, so it never leaves its path: 1.
        """
        rows = self.on_path
        ratio = np.minimum(self["small_logprob"][rows] - self["large_logprob"][rows], 0.0)
        return np.where(self["token"][rows] >= 0, np.exp(ratio), 1.0)

    def of(self, prompts: set[str]) -> DraftTraces:
        """Those of the given prompts."""
        keep = np.isin(self["prompt"], list(prompts))
        return DraftTraces({name: column[keep] for name, column in self.columns.items()}, self.longest, self.budget)

    def tiled(self, times: int) -> DraftTraces:
        """The same prompts again and again, to see what replaying many would take."""
        return DraftTraces({n: np.tile(c, times) for n, c in self.columns.items()}, self.longest, self.budget)


def read_drafts(folder: Path) -> DraftTraces:
    """All finished shards of ``folder``. TraceError when it holds none, other traces, or those of a newer version."""
    meta = read_meta(folder)
    found = meta.get("drafts")
    if found is None:
        raise TraceError(f"{folder} holds traces of hand-offs, not of drafts; collect draft traces in another folder")
    if found > DRAFT_SCHEMA:
        raise TraceError(f"{folder} was written by a newer version (drafts {found}, this one reads {DRAFT_SCHEMA})")
    return DraftTraces(read_columns(folder, (*NEEDED, *STEP_FEATURES)), meta["longest"], meta["max_new_tokens"])
