"""Live runs on the tuning prompts: they choose among the finalists of the search and correct one threshold, once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decoding import Autoregressive, Backoff
from policies import Policy
from train import live
from train.judge import Judge
from train.prepare import Job, console
from train.search import GRID, Search, solve

LEAST_SPEEDUP = 1.05


@dataclass
class Chosen:
    """The policy, the trial it came from, and how live runs on the tuning prompts compared with replay."""

    policy: Policy
    trial: int
    quantile: float
    faster: float
    """in speed, the median of the finalists"""
    worse: float


def tune_live(job: Job, search: Search, trials: list) -> Chosen | None:
    """Run the best trials on the tuning prompts and correct the best one's threshold; None when none can win."""
    decoders = {live.LARGE: Autoregressive(job.large)}
    for trial in trials:
        policy = search.policy(trial.params)
        policy.set_threshold(search.threshold(policy, trial.params["quantile"]))
        decoders[f"trial {trial.number}"] = Backoff([job.small, job.large], policy.to(job.large.device))
    measured = live.measure(
        decoders, job.splits["tune"], job.config.max_new_tokens, job.judge, job.folder / "tune.jsonl", "live, tuning"
    )
    found = [_found(search, trial, measured) for trial in trials]
    # Each trial's own factor would favour the one whose few prompts went best, and promise its luck to the next ones.
    faster = float(np.median([one.faster for one in found]))
    options = []
    for trial, one in zip(trials, found, strict=True):
        policy = search.policy(trial.params)
        curve, careful = search.curve(policy), _careful(job.judge, one)
        i = solve(curve, job.goal, faster, careful)
        if i is not None and (job.goal.budget is None or _worth_it(curve[i, 0], faster)):
            value = job.goal.value(curve[i, 0] * faster, curve[i, 1] * careful)
            options.append((value, Chosen(policy, trial.number, float(GRID[i]), faster, one.worse)))
    if not options:
        return None
    chosen = min(options, key=lambda option: option[0])[1]
    chosen.policy.set_threshold(search.threshold(chosen.policy, chosen.quantile))
    return chosen


@dataclass
class Found:
    """What replay said of a trial, and its texts on the tuning prompts."""

    speed: float
    loss: float
    faster: float
    """live speedup over the replayed one"""
    losses: np.ndarray
    """[prompts] live"""

    @property
    def worse(self) -> float:
        return float(self.losses.mean()) / self.loss if self.loss > 0 else 1.0


def _found(search: Search, trial, measured: dict) -> Found:
    name = f"trial {trial.number}"
    speed, loss = search.replay(search.policy(trial.params), trial.params["quantile"])
    live_speed, losses = live.speedup(measured, name), measured[name]["loss"]
    console.print(f"{name}: replay {speed:.3f}x at loss {loss:.4f}, live {live_speed:.3f}x at loss {losses.mean():.4f}")
    return Found(speed, loss, live_speed / speed, losses)


def _careful(judge: Judge, found: Found) -> float:
    """The factor from replayed losses to those that a budget is held against.

    A factor of a few prompts may make a budget stricter, not looser: it was measured at one point of the curve, and a
    policy that happened to lose next to nothing there would be let off everything elsewhere. A grader counts in units
    of its own, so there it may be below 1, but a standard error is added.
    """
    if judge.grader is None or found.loss <= 0:
        return max(found.worse, 1.0)
    error = found.losses.std() / np.sqrt(len(found.losses))
    return max(float(found.losses.mean() + error) / found.loss, 0.0)


def _worth_it(replayed: float, faster: float) -> bool:
    """Whether a policy within the loss budget is a speedup at all: by replay alone too, as ``faster`` is a noisy factor
    measured elsewhere on the curve, and would make handing on everything look quick."""
    return replayed > 1 and replayed * faster >= LEAST_SPEEDUP
