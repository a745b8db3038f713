"""Where a stop policy ends the drafts of logged texts: the steps it would have seen live, made from draft traces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from decoding.state.sampling import POLICY, counter_noise
from decoding.step import Step
from policies import Survival
from policies.features.table import FEATURES
from train.replay.rounds import Starts
from train.traces.draft_traces import OF_THE_ROUND, STEP_FEATURES, DraftTraces

LIVE = (*STEP_FEATURES, *OF_THE_ROUND, "uniform")
"""what replay knows of a step, besides moving averages"""


class Gathered(Mapping):
    """Columns of the traces at ``rows`` [r, k], each gathered when it is first asked for."""

    def __init__(self, columns: dict[str, Tensor], rows: Tensor):
        self.columns, self.rows, self.found = columns, rows, {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.found:
            self.found[name] = self.columns[name][self.rows]
        return self.found[name]

    def __contains__(self, name) -> bool:
        return name in self.columns

    def __iter__(self):
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)


class Drafts:
    """Every draft that could begin at a position of the traces, given where the draft model is right.

    ``run`` [positions] as in ``Texts``; ``seed`` is that of the live runs (for features of noise).
    """

    def __init__(self, traces: DraftTraces, run: np.ndarray, seed: int):
        places, on, longest = np.arange(traces.longest), traces.on_path, traces.longest
        right = np.minimum(places, run[:, None])
        stands = np.minimum(np.arange(len(on))[:, None] + right, len(on) - 1)
        rows = np.minimum(on[stands] + places - right, len(traces["depth"]) - 1)  # no draft gets beyond the last row
        self.rows, self.longest, self.seed = torch.from_numpy(rows), longest, seed
        self.columns = {name: torch.tensor(traces[name]) for name in (*STEP_FEATURES, "last_token")}
        asked = torch.from_numpy(traces["target_entropy"][on])
        first = torch.from_numpy(traces["position"][on] == 0)
        self.large_entropy = torch.where(first, torch.nan, asked.roll(1))

    @cached_property
    def everywhere(self) -> Step:
        """The steps [positions, longest] of rounds from every position, as if there had been none before."""
        n = len(self.rows)
        return self.steps(torch.arange(n), torch.full((n,), torch.nan), self.longest)

    def steps(self, at: Tensor, agreed: Tensor, length: int) -> Step:
        """The steps [r, length] of rounds that begin at the positions ``at`` [r]; the past is ``agreed`` [r]."""
        columns = Gathered(self.columns, self.rows[at, :length])
        shape = columns.rows.shape
        position = columns["position"].long()
        return Step(
            logits=None,
            position=position,
            since_large=torch.arange(length).expand(shape),
            agreed=agreed[:, None].expand(shape),
            large_entropy=self.large_entropy[at][:, None].expand(shape),
            last_token=columns["last_token"],
            uniform=counter_noise(torch.full_like(position, self.seed), position, POLICY),
            repeated=columns["repeated"],
            columns=columns,
        )


class PrecomputedStops:
    """Stops of a policy for which every round is the same wherever the text came from: found for all at once."""

    def __init__(self, first: np.ndarray, ends: np.ndarray):
        self.first, self.ends = first, ends

    def __call__(self, starts: Starts) -> np.ndarray:
        return self.ends[self.first[starts.text] + starts.position]


class SequentialStops:
    """Stops of a policy that looks back over rounds, asked round by round, with the history that it would have had."""

    def __init__(self, policy, drafts: Drafts, first: np.ndarray, length: int, budget: int):
        self.policy, self.drafts, self.first, self.length = policy, drafts, first, length
        self.window = getattr(policy, "window", 0)
        columns = len(getattr(policy, "history", ()))
        size = self.window + budget + length + 1
        self.history = torch.full((len(first), size, columns), torch.nan) if columns else None

    def __call__(self, starts: Starts) -> np.ndarray:
        at = torch.from_numpy(self.first[starts.text] + starts.position)
        step = self.drafts.steps(at, torch.from_numpy(starts.agreed).float(), self.length)
        if self.history is None:
            return first_true(self.policy(step))
        text, position = torch.from_numpy(starts.text)[:, None], torch.from_numpy(starts.position)[:, None]
        before = self.history[text, position + torch.arange(self.window)]
        seen = self.policy.observe(step).float()
        step.history = windows(before, seen)
        said = first_true(self.policy(step))
        # As ``policy_state`` records it: what the draft was asked about, and then a place that it has not seen.
        asked = torch.from_numpy(np.minimum(said + 1, starts.room))[:, None]
        places = torch.arange(self.length + 1)
        seen = torch.cat([seen, torch.full_like(seen[:, :1], torch.nan)], 1)
        self.history[text, position + self.window + places] = seen.masked_fill((places >= asked)[..., None], torch.nan)
        return said


def check(policy) -> None:
    """ValueError for a policy that reads what draft traces do not hold."""
    if getattr(policy, "needs_hidden", False):
        raise ValueError("draft traces hold no hidden states; replay a policy that reads features only")
    for name in getattr(policy, "names", ()):
        if name not in LIVE and FEATURES[name].averages is None:
            raise ValueError(f"draft traces do not hold {name!r}; it is known of drafted tokens only")


def is_memoryless(policy) -> bool:
    """Whether what it says in a round does not depend on the rounds before."""
    names = getattr(policy, "names", OF_THE_ROUND)  # one that does not say what it reads may read anything
    within = isinstance(policy, Survival) or not getattr(policy, "history", ())
    return within and "agreed" not in names


def all_steps(policy, drafts: Drafts) -> Step:
    """The steps [positions, longest] of rounds from every position, for a policy that ``forgets``."""
    step = drafts.everywhere
    if not getattr(policy, "history", ()):
        return step
    seen = policy.observe(step).float()
    window = max(1, min(policy.window, drafts.longest - 1))
    return replace(step, history=windows(torch.full((len(seen), window, seen.shape[-1]), torch.nan), seen))


def windows(before: Tensor, seen: Tensor) -> Tensor:
    """[r, length, w, k]: the w values before each of ``seen`` [r, length, k], which ``before`` [r, w, k] precede."""
    w = before.shape[1]
    return torch.cat([before, seen[:, :-1]], 1).unfold(1, w, 1).transpose(2, 3)


def first_true(said: Tensor) -> np.ndarray:
    """[r] index of the first True of ``said`` [r, length], ``length`` where there is none."""
    said = said.numpy()
    return np.where(said.any(1), said.argmax(1), said.shape[1])
