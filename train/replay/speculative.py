"""Replay of speculative decoding from draft traces, without a model: any stop policy, any draft length.

Exact for greedy decoding: the output is the target's text whatever is drafted, on that text the draft's steps are
logged, and off it they depend only on where the draft went wrong. With sampling it is exact in distribution: given the
text, a drafted position is accepted with probability min(1, q / p) of its token, whatever happened elsewhere, and what
the draft goes on with after a rejection was drawn when it was logged. Every seed is then one run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from decoding.cost.costs import ModelCosts
from train.replay.rounds import LoggedTexts, Rounds, play, runs
from train.replay.stop_decisions import (
    Drafts,
    PrecomputedStops,
    SequentialStops,
    all_steps,
    check,
    first_true,
    is_memoryless,
)
from train.traces.draft_traces import DraftTraces


@dataclass(frozen=True)
class Replayed:
    """What a run over the prompts of the traces would have counted; arrays [prompts]."""

    rounds: Rounds
    tokens: np.ndarray

    def _sum(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.rounds.text, values, len(self.tokens))

    @property
    def target_calls(self) -> np.ndarray:
        return self._sum(np.ones(len(self.rounds.text))).astype(int)

    @property
    def draft_calls(self) -> np.ndarray:
        return self._sum(self.rounds.asked).astype(int)

    @property
    def drafted(self) -> np.ndarray:
        return self._sum(self.rounds.drafted).astype(int)

    @property
    def accepted(self) -> np.ndarray:
        """tokens of the answer that the draft wrote"""
        return self._sum(self.rounds.accepted).astype(int)

    def lengths(self) -> np.ndarray:
        """[longest + 1] rounds by drafted tokens, over all prompts."""
        return np.bincount(self.rounds.drafted)

    def seconds(self, cost: ModelCosts) -> np.ndarray:
        """[prompts] priced by the timing tables of ``cost``."""
        return self._sum(self.rounds.seconds(cost))


class Replay:
    """Draft traces made ready to be replayed many times.

    ``seed`` is that of the live runs: of every single one if the policy reads noise, and with sampling of what is
    accepted.
    """

    def __init__(self, traces: DraftTraces, seed: int = 0):
        self.traces = traces
        # A chance of 1 is never missed and one of 0 never met: greedy text replays alike with every seed.
        run = runs(np.random.default_rng(seed).random(len(traces.chance)) < traces.chance)
        self.texts = LoggedTexts(traces.first, traces.tokens, traces.prompt_tokens, run)
        self.drafts = Drafts(traces, run, seed)

    def __call__(
        self,
        stop=None,
        length: int | None = None,
        keep_stop_token: bool = False,
        budget: int | None = None,
        score: torch.Tensor | None = None,
    ) -> Replayed:
        """As ``Speculative(pair, length, stop, keep_stop_token=...)`` for ``max_new_tokens=budget``, prompt by prompt.

        ``length`` and ``budget`` default to what was logged. ``score`` is ``scores(stop)``, if it was kept from
        another threshold. ValueError for more than was logged, and for a policy that reads what was not.
        """
        length = self.traces.longest if length is None else length
        budget = self.traces.budget if budget is None else budget
        for name, value, most in (("length", length, self.traces.longest), ("budget", budget, self.traces.budget)):
            if not 1 <= value <= most:
                raise ValueError(f"the {name} must be from 1 to {most}, the most that was logged, not {value}")
        stops = None if stop is None else self._stops(stop, length, budget, score)
        with torch.inference_mode():
            rounds = play(self.texts, length, budget, stops, keep_stop_token)
        return Replayed(rounds, np.minimum(self.texts.tokens, budget))

    def scores(self, policy) -> torch.Tensor:
        """[positions, longest] risk of a ``Policy`` at each step of a round that begins at a position.

        ValueError for one that looks back over rounds: its scores depend on its own threshold.
        """
        check(policy)
        if not is_memoryless(policy):
            raise ValueError(f"{', '.join(policy.names)} depend on earlier rounds; replay this policy without scores")
        with torch.inference_mode():
            return policy.score(all_steps(policy, self.drafts))

    def _stops(self, stop, length: int, budget: int, score: torch.Tensor | None):
        check(stop)
        if not is_memoryless(stop):
            return SequentialStops(stop, self.drafts, self.texts.first, length, budget)
        with torch.inference_mode():
            said = stop(all_steps(stop, self.drafts)) if score is None else ~(score < stop.threshold)
        return PrecomputedStops(self.texts.first, first_true(said))


def expected(replays: Sequence[Replay], cost=None, **options) -> dict[str, float]:
    """Expected counts a prompt (and seconds by ``cost``) over ``replays`` that differ in their seed."""
    names = ("target_calls", "draft_calls", "drafted", "accepted", "tokens")
    runs = [replay(**options) for replay in replays]
    counts = {name: float(np.mean([getattr(run, name) for run in runs])) for name in names}
    return counts if cost is None else counts | {"seconds": float(np.mean([run.seconds(cost) for run in runs]))}


def gap(replayed: Replayed, live: Sequence[dict], cost=None) -> dict:
    """Replay against the same prompts decoded live: ``live`` holds ``counts`` and ``seconds`` of each, one by one.

    ``equal`` [prompts]: calls of both models and drafted tokens are the same. ``predicted`` and ``measured`` are
    seconds in all, ``ratio`` measured / predicted; only with ``cost``.
    """
    own = zip(replayed.draft_calls.tolist(), replayed.target_calls.tolist(), replayed.drafted.tolist(), strict=True)
    theirs = [(*row["counts"]["calls"], row["counts"]["drafted"]) for row in live]
    found = {"equal": np.array([a == b for a, b in zip(own, theirs, strict=True)])}
    if cost is not None:
        predicted, measured = float(replayed.seconds(cost).sum()), float(sum(row["seconds"] for row in live))
        found |= {"predicted": predicted, "measured": measured, "ratio": measured / predicted}
    return found
