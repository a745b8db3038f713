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
    options = []
    for trial in trials:
        name, policy = f"trial {trial.number}", search.policy(trial.params)
        speed, loss = search.replay(policy, trial.params["quantile"])
        faster = live.speedup(measured, name) / speed
        worse = float(measured[name]["loss"].mean()) / loss if loss > 0 else 1.0
        curve = search.curve(policy)
        careful = _careful(job.judge, measured[name]["loss"], loss)
        i = solve(curve, job.goal, faster, careful)
        console.print(
            f"trial {trial.number}: replay {speed:.3f}x at loss {loss:.4f}, "
            f"live {speed * faster:.3f}x at loss {loss * worse:.4f}"
        )
        if i is not None and (job.goal.budget is None or _worth_it(curve[i, 0], faster)):
            value = job.goal.value(curve[i, 0] * faster, curve[i, 1] * careful)
            options.append((value, Chosen(policy, trial.number, float(GRID[i]), faster, worse)))
    if not options:
        return None
    chosen = min(options, key=lambda option: option[0])[1]
    chosen.policy.set_threshold(search.threshold(chosen.policy, chosen.quantile))
    return chosen


def _careful(judge: Judge, live: np.ndarray, replayed: float) -> float:
    """The factor from replayed losses to those that a budget is held against.

    A factor of a few prompts may make a budget stricter, not looser: it was measured at one point of the curve, and a
    policy that happened to lose next to nothing there would be let off everything elsewhere. A grader counts in units
    of its own, so there it may be below 1, but a standard error is added.
    """
    if replayed <= 0:
        return 1.0
    if judge.grader is None:
        return max(float(live.mean()) / replayed, 1.0)
    return max(float(live.mean() + live.std() / np.sqrt(len(live))) / replayed, 0.0)


def _worth_it(replayed: float, faster: float) -> bool:
    """Whether a policy within the loss budget is a speedup at all: by replay alone too, as ``faster`` is a noisy factor
    measured elsewhere on the curve, and would make handing on everything look quick."""
    return replayed > 1 and replayed * faster >= LEAST_SPEEDUP
