"""Replay on hand-off traces: the speed and the loss that a decoder would have had, computed in milliseconds.

Greedy speculative decoding replays exactly, because its output is the large model's text at any draft length. Backoff
replays approximately: a token that the policy would have changed is followed by the trace's own text all the same, so
a live run has to confirm the figures.
"""

import numpy as np

from decoding.cost.costs import ModelCosts
from train.replay.rounds import LoggedTexts, Rounds, play, run_lengths
from train.traces.handoff_traces import Traces


def alone(traces: Traces, cost: ModelCosts) -> np.ndarray:
    """[trajectories] seconds of the large model alone for as many tokens."""
    return cost.text(-1, traces["prompt_tokens"][traces.starts[:-1]], np.diff(traces.starts))


def backoff(traces: Traces, escalate: np.ndarray, cost: ModelCosts) -> tuple[float, float]:
    """(speedup over the large model alone, mean loss per prompt) with the hand-offs ``escalate`` [rows].

    An EOS of the small model escalates in any case, as with ``verify_eos``. A loop that the large model continues is
    charged only after a token that it would not have written was kept: until then the text is its own.
    """
    escalate = escalate | traces["small_ends"]
    kept = ~escalate & (traces["small_token"] != traces["large_token"])
    lost = np.where(escalate, traces.large_cost * _any_before(kept, traces), traces.small_cost)
    loss = np.add.reduceat(lost, traces.starts[:-1]) / np.diff(traces.starts)
    position = traces["position"].astype(int)
    prompt = traces["prompt_tokens"]
    last = np.where(escalate, position, -1)
    before = np.concatenate([[-1], _last_so_far(last, traces)[:-1]])
    before[traces.starts[:-1]] = -1
    # The large model reads the gap since its last call, and the prompt in its first.
    gap = np.where(before < 0, prompt + position, position - before)
    large = np.where(escalate, cost.joined(-1, gap, escalate.mean()), 0.0).sum()
    first = traces.starts[:-1]
    small = cost.text(0, prompt[first], np.diff(traces.starts)).sum()
    return float(alone(traces, cost).sum() / (small + large)), float(loss.mean())


def _last_so_far(last: np.ndarray, traces: Traces) -> np.ndarray:
    """Running maximum of ``last`` [rows] that starts anew with every trajectory."""
    offset = traces.trajectory_of * (last.max() + 2)
    return np.maximum.accumulate(last + offset) - offset


def _any_before(flags: np.ndarray, traces: Traces) -> np.ndarray:
    """bool [rows]: an earlier row of the same trajectory is flagged."""
    count = np.cumsum(flags) - flags
    return count > np.repeat(count[traces.starts[:-1]], np.diff(traces.starts))


def rounds(traces: Traces, length: int, budget: int) -> Rounds:
    """The rounds of greedy speculative decoding at a fixed draft length, on trajectories of the large model alone."""
    first = traces.starts[:-1]
    agree = traces["small_token"] == traces["large_token"]
    texts = LoggedTexts(first, np.diff(traces.starts), traces["prompt_tokens"][first], run_lengths(agree))
    return play(texts, length, budget)


def speculative(traces: Traces, length: int, cost: ModelCosts, budget: int) -> float:
    """Speedup of those ``rounds`` over the large model alone."""
    return float(alone(traces, cost).sum() / rounds(traces, length, budget).seconds(cost).sum())


def best_length(traces: Traces, cost: ModelCosts, budget: int, lengths=range(1, 9)) -> tuple[int, float]:
    """(draft length, speedup) of the fastest fixed draft length."""
    speeds = {length: speculative(traces, length, cost, budget) for length in lengths}
    best = max(speeds, key=speeds.get)
    return best, speeds[best]
