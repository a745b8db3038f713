"""The decisions of a stop policy on draft traces, made on the steps that it would see live."""

from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from decoding.state.sampling import POLICY, counter_noise
from decoding.step import PolicyNeeds, Step
from policies import FEATURES, Survival
from train.replay.rounds import Starts
from train.traces.draft_traces import OF_THE_ROUND, STEP_FEATURES, DraftTraces

LIVE = (*STEP_FEATURES, *OF_THE_ROUND, "uniform")  # features of a step that replay knows, besides moving averages


class Gathered(dict):
    """Columns of the traces at ``rows`` [r, k], each gathered when it is first read."""

    def __init__(self, columns: dict[str, Tensor], rows: Tensor):
        super().__init__(columns)
        self.rows, self.found = rows, {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.found:
            self.found[name] = super().__getitem__(name)[self.rows]
        return self.found[name]


class Drafts:
    """The draft that begins at each position of the traces.

    ``accepted_run`` [positions] as in ``LoggedTexts``; ``seed`` is that of the live runs, for the feature ``uniform``.
    """

    def __init__(self, traces: DraftTraces, accepted_run: np.ndarray, seed: int):
        places, on, longest = np.arange(traces.longest), traces.on_path, traces.longest
        right = np.minimum(places, accepted_run[:, None])
        last_right = np.minimum(np.arange(len(on))[:, None] + right, len(on) - 1)
        rows = np.minimum(on[last_right] + places - right, len(traces["depth"]) - 1)  # clipped: no draft reads those
        self.rows, self.longest, self.seed = torch.from_numpy(rows), longest, seed
        self.columns = {name: torch.tensor(traces[name]) for name in (*STEP_FEATURES, "last_token")}
        target_entropy = torch.from_numpy(traces["target_entropy"][on])
        first = torch.from_numpy(traces["position"][on] == 0)
        self.large_entropy = torch.where(first, torch.nan, target_entropy.roll(1))

    @cached_property
    def everywhere(self) -> Step:
        """The steps [positions, longest] of a first round that begins at each position."""
        n = len(self.rows)
        return self.steps(torch.arange(n), torch.full((n,), torch.nan), self.longest)

    def steps(self, at: Tensor, agreed: Tensor, length: int) -> Step:
        """The steps [r, length] of rounds that begin at the positions ``at`` [r]; ``agreed`` [r] as in ``Starts``."""
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


class SequentialStops:
    """The stops of a policy that looks back over rounds: it decides round by round, with the history of a live run."""

    def __init__(self, policy, drafts: Drafts, first: np.ndarray, length: int, budget: int):
        self.policy, self.drafts, self.first, self.length = policy, drafts, first, length
        self.needs = needs = PolicyNeeds.of(policy)
        size = len(first), needs.window + budget + length + 1, len(needs.history)
        self.history = torch.full(size, torch.nan) if needs.history else None

    def __call__(self, starts: Starts) -> np.ndarray:
        at = torch.from_numpy(self.first[starts.text] + starts.position)
        step = self.drafts.steps(at, torch.from_numpy(starts.agreed).float(), self.length)
        if self.history is None:
            return first_true(self.policy(step))
        text, position = torch.from_numpy(starts.text)[:, None], torch.from_numpy(starts.position)[:, None]
        before = self.history[text, position + torch.arange(self.needs.window)]
        seen = self.needs.observe(step).float()
        step.history = windows(before, seen)
        said = first_true(self.policy(step))
        # As PolicyState records it: the steps that were decided, then NaN.
        decided = torch.from_numpy(np.minimum(said + 1, starts.room))[:, None]
        places = torch.arange(self.length + 1)
        seen = torch.cat([seen, torch.full_like(seen[:, :1], torch.nan)], 1)
        seen = seen.masked_fill((places >= decided)[..., None], torch.nan)
        self.history[text, position + self.needs.window + places] = seen
        return said


def check(policy) -> None:
    """ValueError for a policy that reads what draft traces do not hold."""
    needs = PolicyNeeds.of(policy)
    if needs.needs_hidden:
        raise ValueError("draft traces hold no hidden states; replay a policy that reads features only")
    for name in needs.names or ():
        if name not in LIVE and FEATURES[name].averages is None:
            raise ValueError(f"draft traces do not hold {name!r}; only drafted tokens have it")


def is_memoryless(policy) -> bool:
    """Whether its decisions in a round do not depend on the rounds before."""
    needs = PolicyNeeds.of(policy)
    return (isinstance(policy, Survival) or not needs.history) and not needs.reads("agreed")


def all_steps(policy, drafts: Drafts) -> Step:
    """The steps [positions, longest] of a round from each position, with history, for a memoryless policy."""
    step = drafts.everywhere
    needs = PolicyNeeds.of(policy)
    if not needs.history:
        return step
    seen = needs.observe(step).float()
    window = max(1, min(needs.window, drafts.longest - 1))
    return replace(step, history=windows(torch.full((len(seen), window, seen.shape[-1]), torch.nan), seen))


def windows(before: Tensor, seen: Tensor) -> Tensor:
    """[r, length, w, k] the w values before each of ``seen`` [r, length, k], which follows ``before`` [r, w, k]."""
    w = before.shape[1]
    return torch.cat([before, seen[:, :-1]], 1).unfold(1, w, 1).transpose(2, 3)


def first_true(said: Tensor) -> np.ndarray:
    """[r] index of the first True of ``said`` [r, length], ``length`` where there is none."""
    said = said.numpy()
    return np.where(said.any(1), said.argmax(1), said.shape[1])
