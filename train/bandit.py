"""Simulate a bandit, the simple alternative to tuning: UCB1 picks a draft length for each prompt.

    python train/bandit.py runs/NAME

The arms are the large model alone and speculative decoding at fixed draft lengths. All write the same text, so the
reward is tokens per priced second, which replay on the run's traces gives exactly for every arm. Prompts come in many
random orders. TapOut (2511.02017) and BanditSpec (2505.15141) do this live over stopping rules and draft lengths.
RUN/bandit.json holds the speedups of UCB, of random arms, and of each arm used throughout.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from decoding.cost import cache
from train.common import atomic
from train.common.cli import at_least, checking, command
from train.common.load_run import refuse_drawn
from train.common.progress import say
from train.common.run_folder import read_settings
from train.replay.backoff import alone, rounds
from train.traces.handoff_traces import read_traces


class UCB:
    """UCB1 (Auer et al. 2002) for rewards in [0, 1]: the arm with the highest mean + sqrt(width * log t / pulls).

    Each arm is pulled once first, in order.
    """

    def __init__(self, arms: int, width: float = 2.0):
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
    """longest draft; the arms are the large model alone and each draft length up to this"""
    passes: int = 10
    """number of times that each prompt comes"""
    orders: int = 200
    """number of random orders to average over"""
    width: float = 0.1
    """width of the confidence bound; UCB1's proof has 2, which explores for thousands of prompts"""
    seed: int = 0


def run(config: Bandit) -> dict:
    """Replay, print and write RUN/bandit.json. Raises InputError when there is no finished run."""
    with checking():
        at_least(config, {"longest": 1, "passes": 1, "orders": 1, "seed": 0})
        if not 0 <= config.width < math.inf:
            raise ValueError(f"--width must be at least 0, not {config.width:g}")
        seconds, reference = arm_seconds(config)
    found = compare(seconds, reference, config)
    atomic.write_json(config.run / "bandit.json", found)
    say(found)
    return found


def arm_seconds(config: Bandit) -> tuple[np.ndarray, np.ndarray]:
    """Priced seconds [prompts, arms] of each arm, and [prompts] of the large model alone, on its own texts."""
    settings = read_settings(config.run)
    refuse_drawn(config.run, settings)
    traces, cost = read_traces(settings.traces or config.run / "traces"), cache.read(config.run / "cost.json")
    traces = traces.where(traces["trajectory"] == "large")
    reference = alone(traces, cost)
    played = (rounds(traces, k, settings.max_new_tokens) for k in range(1, config.longest + 1))
    drafts = [np.bincount(one.text, one.seconds(cost), len(reference)) for one in played]
    return np.stack([reference, *drafts], 1), reference


def compare(seconds: np.ndarray, reference: np.ndarray, config: Bandit) -> dict:
    """Speedups over the large model alone, in total time over the same prompts, averaged over random orders."""
    draw = np.random.default_rng(config.seed)
    reward = reference[:, None] / seconds
    reward = reward / reward.max()  # in (0, 1], as the bound requires
    ucb, chance, pulls = [], [], np.zeros(seconds.shape[1])
    total = reference.sum() * config.passes
    for _ in range(config.orders):
        order = np.concatenate([draw.permutation(len(reference)) for _ in range(config.passes)])
        bandit, taken = UCB(seconds.shape[1], config.width), 0.0
        for prompt in order:
            arm = bandit.select()
            bandit.update(arm, reward[prompt, arm])
            taken += seconds[prompt, arm]
        pulls += bandit.pulls
        ucb.append(total / taken)
        chance.append(total / seconds[order, draw.integers(0, seconds.shape[1], len(order))].sum())
    fixed = reference.sum() / seconds.sum(0)
    return {
        "prompts": len(reference) * config.passes,
        "arms": ["large model alone", *(f"draft length {k}" for k in range(1, seconds.shape[1]))],
        "ucb": float(np.mean(ucb)),
        "ucb_range": [float(x) for x in np.quantile(ucb, [0.025, 0.975])],
        "random_arm": float(np.mean(chance)),
        "fixed": fixed.tolist(),
        "best_fixed": float(fixed.max()),
        "best_of_each_prompt": float(reference.sum() / seconds.min(1).sum()),
        "pulls": (pulls / pulls.sum()).tolist(),
    }


main = command(Bandit, run, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
