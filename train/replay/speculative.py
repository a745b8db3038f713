"""Replay of speculative decoding from draft traces, without a model: any stop policy, any draft length.

Greedy decoding replays exactly: the output is the target's text at any draft, the draft's steps on that text are
logged, and its steps off the text depend only on where it went wrong. Sampling replays exactly in distribution: given
the text, a drafted position is accepted with probability min(1, q / p) of its token, independently of the others, and
the draft's continuation of a rejected token was drawn when it was logged. Each seed is one run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from decoding.cost.costs import ModelCosts
from train.replay.rounds import LoggedTexts, Rounds, play, run_lengths
from train.replay.stop_decisions import Drafts, SequentialStops, all_steps, check, first_true, is_memoryless
from train.traces.draft_traces import DraftTraces


@dataclass(frozen=True)
class Replayed:
    """The counts of a decoding run over the prompts of the traces; arrays [prompts]."""

    rounds: Rounds
    tokens: np.ndarray

    def _sum(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.rounds.text, values, len(self.tokens))

    @property
    def target_calls(self) -> np.ndarray:
        return np.bincount(self.rounds.text, minlength=len(self.tokens))

    @property
    def draft_calls(self) -> np.ndarray:
        return self._sum(self.rounds.asked).astype(int)

    @property
    def drafted(self) -> np.ndarray:
        return self._sum(self.rounds.drafted).astype(int)

    @property
    def accepted(self) -> np.ndarray:
        """Tokens of the answer that the draft model wrote."""
        return self._sum(self.rounds.accepted).astype(int)

    def lengths(self) -> np.ndarray:
        """Rounds by number of drafted tokens, from 0 on, over all prompts."""
        return np.bincount(self.rounds.drafted)

    def seconds(self, cost: ModelCosts) -> np.ndarray:
        """[prompts] priced by the timing tables of ``cost``."""
        return self._sum(self.rounds.seconds(cost))


class Replay:
    """Draft traces, prepared once and replayed many times.

    ``seed`` is the seed of the live run of every prompt: it gives the noise that a policy may read and, with sampling,
    which drafted tokens are accepted.
    """

    def __init__(self, traces: DraftTraces, seed: int = 0):
        self.traces = traces
        # Greedy text has chances of 0 and 1 only, so it replays alike with every seed.
        accepted_run = run_lengths(np.random.default_rng(seed).random(len(traces.chance)) < traces.chance)
        self.texts = LoggedTexts(traces.first, traces.tokens, traces.prompt_tokens, accepted_run)
        self.drafts = Drafts(traces, accepted_run, seed)

    def __call__(
        self, stop=None, length=None, keep_stop_token=False, budget=None, score: torch.Tensor | None = None
    ) -> Replayed:
        """As ``Speculative(pair, length, stop, keep_stop_token=...)`` for ``max_new_tokens=budget``, prompt by prompt.

        ``length`` and ``budget`` default to the longest that was logged. ``score``: ``scores(stop)``, when it is known
        from another threshold. ValueError for more than was logged, and for a policy that reads what was not.
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
        """[positions, longest] score of ``policy`` at each step of a round that begins at each position.

        ValueError for a policy that looks back over rounds: its scores depend on its own threshold.
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
        # The stops of a memoryless policy depend only on where a round begins, so all are known before.
        stops = first_true(said)
        return lambda starts: stops[self.texts.first[starts.text] + starts.position]


def gap(replayed: Replayed, live: Sequence[dict], cost=None) -> dict:
    """Compare a replay with ``live``: ``counts`` and ``seconds`` of each prompt, decoded alone.

    Returns ``equal`` [prompts]: calls of both models and drafted tokens are the same. With ``cost`` also ``predicted``
    and ``measured``, total seconds, and their ``ratio``, measured / predicted.
    """
    own = zip(replayed.draft_calls.tolist(), replayed.target_calls.tolist(), replayed.drafted.tolist(), strict=True)
    theirs = [(*row["counts"]["calls"], row["counts"]["drafted"]) for row in live]
    found = {"equal": np.array([a == b for a, b in zip(own, theirs, strict=True)])}
    if cost is not None:
        predicted, measured = float(replayed.seconds(cost).sum()), float(sum(row["seconds"] for row in live))
        found |= {"predicted": predicted, "measured": measured, "ratio": measured / predicted}
    return found
