"""Live runs on the tuning prompts choose among the finalists of the search; its own texts put one's threshold right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from decoding import Autoregressive, Backoff
from policies import Policy
from train.common.preparation import Job
from train.common.progress import say
from train.evaluation import live
from train.evaluation.threshold_correction import ROUNDS, Corrected, ThresholdProbe, loss_correction
from train.quality.metric import QualityMetric
from train.replay.pricing import alone, handoff_seconds
from train.search.backoff import GRID, Search
from train.search.goal import Goal, solve

LEAST_SPEEDUP = 1.05


@dataclass
class TunedBackoff:
    """The policy, the trial it came from, and how its own texts compared with replay there, in speed and loss."""

    policy: Policy
    trial: int
    quantile: float
    faster: float
    worse: float


def tune_live(job: Job, search: Search, trials: list) -> TunedBackoff | None:
    """Run the best trials on the tuning prompts, timed, take the best and put its threshold right; None when none can
    win."""
    decoders = {live.LARGE: Autoregressive(job.large)}
    for trial in trials:
        fitted = search.policy(trial.params)
        policy = fitted.with_threshold(search.threshold(fitted, trial.params["quantile"]))
        decoders[_name(trial)] = Backoff([job.small, job.large], policy.to(job.large.device))
    path, prompts = job.folder / "tune.jsonl", job.splits["tune"]
    measured = live.measure(decoders, prompts, job.config.max_new_tokens, job.judge, path, "live, tuning")
    found = [_found(search, trial, measured) for trial in trials]
    # Each trial's own factor would favour the one whose few prompts went best, and promise its luck to the next ones.
    faster, options = float(np.median([one.faster for one in found])), []
    for trial, one in zip(trials, found, strict=True):
        curve = search.curve(search.policy(trial.params))
        worse = loss_correction(job.judge, one.losses, one.loss)
        i = solve(curve, job.goal, faster, worse)
        if i is not None:
            value = job.goal.value(curve[i, 0] * faster, curve[i, 1] * worse)
            options.append((value, trial.number, trial, float(GRID[i])))
    if not options:
        return None
    *_, trial, quantile = min(options)
    rows = live.finished(path, decoders, "")
    texts = {p.id: rows[p.id]["methods"] for p in prompts}
    references = {name: methods[live.LARGE]["answer"] for name, methods in texts.items()}
    written = ThresholdProbe(
        job, search, references, clock(job, texts, measured, trials), job.folder / "threshold.jsonl"
    )
    return correct_threshold(job.goal, search, job.judge, trial, quantile, written)


def clock(job: Job, texts: dict[str, dict], measured: dict, trials: list) -> float:
    """Live speedups over those that the timing table gives the same texts, the median of the finalists."""
    prompts = job.splits["tune"]
    reference = alone(prompts, [texts[p.id][live.LARGE]["answer"] for p in prompts], job.cost)
    found = []
    for name in map(_name, trials):
        seconds = np.array([handoff_seconds(len(p.ids), texts[p.id][name]["writers"], job.cost.tables) for p in prompts])
        own = {"seconds": seconds, "tokens": measured[name]["tokens"]}
        found.append(live.speedup(measured, name) / live.speedup({live.LARGE: reference, name: own}, name))
    return float(np.median(found))


def correct_threshold(
    goal: Goal, search: Search, judge: QualityMetric, trial, quantile: float, written: Callable
) -> TunedBackoff | None:
    """The trial at the threshold that meets the goal by texts written there; None when none does.

    A few rounds: texts at the quantile, what they are over replay's, and the quantile that this makes best.
    """
    policy = search.policy(trial.params)
    corrected = Corrected(search.curve(policy))
    for _ in range(ROUNDS):
        speed, losses = written(policy, trial.number, quantile)
        replayed = search.point(policy, quantile)
        corrected.factors[quantile] = speed / replayed[0], loss_correction(judge, losses, replayed[1])
        say(f"trial {trial.number} at quantile {quantile:.3f}: {speed:.3f}x at loss {losses.mean():.4f}")
        best = corrected.solve(goal)
        if best is None or corrected.knows(best):
            break
        quantile = best
    if best is None:
        return None
    (replayed, _), (faster, worse) = search.point(policy, best), corrected.at(best)
    if goal.budget is not None and not _worth_it(replayed, replayed * faster):
        return None
    policy = policy.with_threshold(search.threshold(policy, best))
    return TunedBackoff(policy, trial.number, best, float(faster), float(worse))


@dataclass
class LiveCheck:
    """What replay said of a trial, and its texts on the tuning prompts."""

    speed: float
    loss: float
    faster: float
    """live speedup over the replayed one"""
    losses: np.ndarray
    """[prompts] live"""


def _found(search: Search, trial, measured: dict) -> LiveCheck:
    name = _name(trial)
    speed, loss = search.replay(search.policy(trial.params), trial.params["quantile"])
    live_speed, losses = live.speedup(measured, name), measured[name]["loss"]
    say(f"{name}: replay {speed:.3f}x at loss {loss:.4f}, live {live_speed:.3f}x at loss {losses.mean():.4f}")
    return LiveCheck(speed, loss, live_speed / speed, losses)


def _name(trial) -> str:
    return f"trial {trial.number}"


def _worth_it(replayed: float, speed: float) -> bool:
    """Whether a policy within the loss budget is a speedup at all: by replay alone too, as a factor measured elsewhere
    on the curve would make handing on everything look quick."""
    return replayed > 1 and speed >= LEAST_SPEEDUP
