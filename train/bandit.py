"""A bandit over recipes: UCB1 picks an arm for each prompt, and learns from what it got. The simple rival of tuning.

    python train/bandit.py runs/NAME

The arms are the large model alone and speculative decoding at fixed draft lengths; all write the same text, so the
reward is tokens per priced second, and replay on the run's traces gives it exactly for every arm. Prompts come in many
random orders. TapOut (2511.02017) and BanditSpec (2505.15141) do this live over stopping rules and draft lengths.
RUN/bandit.json holds the speedups of UCB, of a random arm, of each arm kept throughout, and of the best one.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from train.common.cli import at_least, attempt, checking
from train.common.progress import say


class UCB:
    """UCB1 (Auer et al. 2002) for rewards in [0, 1]: the arm with the highest mean + sqrt(width * log t / pulls).

    Each arm is pulled once first, in order. The bonus has a count for each arm: with one for all it would be greedy.
    """

    def __init__(self, arms: int, width: float = 2.0):
        if arms < 1:
            raise ValueError(f"a bandit needs at least 1 arm, not {arms}")
        self.pulls, self.sums, self.width = np.zeros(arms, int), np.zeros(arms), width

    def select(self) -> int:
        if (self.pulls == 0).any():
            return int(self.pulls.argmin())
        bonus = np.sqrt(self.width * math.log(self.pulls.sum()) / self.pulls)
        return int((self.sums / self.pulls + bonus).argmax())

    def update(self, arm: int, reward: float) -> None:
        self.pulls[arm] += 1
        self.sums[arm] += reward


@dataclass
class Bandit:
    """UCB over draft lengths, replayed on the traces of a run."""

    run: Annotated[Path, tyro.conf.Positional]
    """folder of a finished run of train/fit_policy.py"""
    longest: int = 6
    """the arms are the large model alone and the draft lengths up to this"""
    passes: int = 10
    """how often the run's prompts are seen"""
    orders: int = 200
    """random orders of the prompts"""
    width: float = 0.1
    """of the confidence bound; 2 is UCB1's proof, which explores for thousands of prompts"""
    seed: int = 0


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when it is done, 2 after one sentence about what was wrong with the input."""
    config = tyro.cli(Bandit, args=argv, description=__doc__)
    return attempt("bandit", lambda: run(config))


def run(config: Bandit) -> dict:
    """Replay, print and write RUN/bandit.json. Raises InputError when there is no finished run."""
    from train.common import atomic

    with checking():
        check(config)
        seconds, alone = arm_seconds(config)
    found = compare(seconds, alone, config)
    atomic.write_json(config.run / "bandit.json", found)
    say(found)
    return found


def check(config: Bandit) -> None:
    at_least(config, {"longest": 1, "passes": 1, "orders": 1, "seed": 0})
    if not 0 <= config.width < math.inf:
        raise ValueError(f"--width must be at least 0, not {config.width:g}")


def arm_seconds(config: Bandit) -> tuple[np.ndarray, np.ndarray]:
    """Priced seconds [prompts, arms] of each arm, and [prompts] of the large model alone, on the run's own texts."""
    from decoding.cost import cache
    from train.common.run_folder import read_settings
    from train.replay.backoff import alone, rounds
    from train.traces.handoff_traces import read_traces

    settings = read_settings(config.run)
    traces, cost = read_traces(settings.traces or config.run / "traces"), cache.read(config.run / "cost.json")
    traces = traces.where(traces["trajectory"] == "large")
    reference = alone(traces, cost)
    played = (rounds(traces, k, settings.max_new_tokens) for k in range(1, config.longest + 1))
    drafts = [np.bincount(one.text, one.seconds(cost), len(reference)) for one in played]
    return np.stack([reference, *drafts], 1), reference


def compare(seconds: np.ndarray, alone: np.ndarray, config: Bandit) -> dict:
    """Speedups over the large model alone: totals over the same prompts, mean over random orders."""
    draw = np.random.default_rng(config.seed)
    reward = alone[:, None] / seconds
    reward = reward / reward.max()  # in (0, 1], as the bound has it
    ucb, chance, pulls = [], [], np.zeros(seconds.shape[1])
    total = alone.sum() * config.passes
    for _ in range(config.orders):
        order = np.concatenate([draw.permutation(len(alone)) for _ in range(config.passes)])
        bandit, taken = UCB(seconds.shape[1], config.width), 0.0
        for prompt in order:
            arm = bandit.select()
            bandit.update(arm, reward[prompt, arm])
            taken += seconds[prompt, arm]
        pulls += bandit.pulls
        ucb.append(total / taken)
        chance.append(total / seconds[order, draw.integers(0, seconds.shape[1], len(order))].sum())
    fixed = alone.sum() / seconds.sum(0)
    return {
        "prompts": len(alone) * config.passes,
        "arms": ["large model alone", *(f"draft length {k}" for k in range(1, seconds.shape[1]))],
        "ucb": float(np.mean(ucb)),
        "ucb_range": [float(x) for x in np.quantile(ucb, [0.025, 0.975])],
        "random_arm": float(np.mean(chance)),
        "fixed": fixed.tolist(),
        "best_fixed": float(fixed.max()),
        "best_of_each_prompt": float(alone.sum() / seconds.min(1).sum()),
        "pulls": (pulls / pulls.sum()).tolist(),
    }


if __name__ == "__main__":
    sys.exit(main())
