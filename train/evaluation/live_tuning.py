"""Live runs on the tuning prompts choose among the finalists of the search; texts of its own correct its threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from decoding import Backoff
from policies.decoder_spec import DecoderSpec
from train.common.job import Job
from train.common.progress import say
from train.evaluation import live
from train.evaluation.threshold_correction import ROUNDS, Corrected, ThresholdProbe, loss_correction
from train.evaluation.tuned import Tuned
from train.quality.metric import QualityMetric
from train.replay.pricing import alone, handoff
from train.search.backoff import GRID, Search
from train.search.goal import LEAST_SPEEDUP, Goal, solve


def tune_live(job: Job, search: Search, trials: list) -> Tuned | None:
    """Time the best trials on the tuning prompts, take the best and correct its threshold.

    None when no trial can meet the goal.
    """
    decoders = {}
    for trial in trials:
        fitted = search.policy(trial.params)
        policy = fitted.with_threshold(search.threshold(fitted, trial.params["quantile"]))
        decoders[_name(trial)] = Backoff(job.models, policy.to(job.large.device))
    measured = live.on_tuning(job, decoders)
    found = [_found(search, trial, measured) for trial in trials]
    # Each trial's own factor would favour the one whose few prompts went best, and promise its luck to the next ones.
    faster, options = float(np.median([one.faster for one in found])), []
    for trial, one in zip(trials, found, strict=True):
        curve = search.curve(search.policy(trial.params))
        worse = loss_correction(job.metric, one.losses, one.loss)
        i = solve(curve, job.goal, faster, worse)
        if i is not None:
            value = job.goal.value(curve[i, 0] * faster, curve[i, 1] * worse)
            options.append((value, trial.number, trial, float(GRID[i])))
    if not options:
        return None
    *_, trial, quantile = min(options)
    rows = live.finished(job.folder / "tune.jsonl", measured, "")
    texts = {p.id: rows[p.id]["methods"] for p in job.splits["tune"]}
    references = {name: methods[live.LARGE]["answer"] for name, methods in texts.items()}
    written = ThresholdProbe(
        job, search, references, clock(job, texts, measured, trials), job.folder / "threshold.jsonl"
    )
    return correct_threshold(job.goal, search, job.metric, trial, quantile, written)


def clock(job: Job, texts: dict[str, dict], measured: dict, trials: list) -> float:
    """Live speedups over those that the timing table gives the same texts, the median of the finalists."""
    prompts = job.splits["tune"]
    reference = alone(prompts, [texts[p.id][live.LARGE]["answer"] for p in prompts], job.cost)
    found = []
    for name in map(_name, trials):
        own = handoff(prompts, [texts[p.id][name]["writers"] for p in prompts], job.cost)
        found.append(live.speedup(measured, name) / live.speedup({live.LARGE: reference, name: own}, name))
    return float(np.median(found))


def correct_threshold(
    goal: Goal, search: Search, metric: QualityMetric, trial, quantile: float, written: Callable
) -> Tuned | None:
    """The trial at the threshold that meets the goal by texts written there; None when no threshold does.

    Each of a few rounds writes texts at a quantile, compares them with replay, and takes the quantile that is best by
    the corrected curve.
    """
    policy = search.policy(trial.params)
    corrected = Corrected(search.curve(policy))
    for _ in range(ROUNDS):
        speed, losses = written(policy, trial.number, quantile)
        replayed = search.point(policy, quantile)
        corrected.factors[quantile] = speed / replayed[0], loss_correction(metric, losses, replayed[1])
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
    return Tuned(policy, DecoderSpec("backoff"), trial.number, best, float(faster), float(worse))


@dataclass
class LiveCheck:
    """What replay said of a trial, and the losses of its texts on the tuning prompts."""

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
    return LiveCheck(loss, live_speed / speed, losses)


def _name(trial) -> str:
    return f"trial {trial.number}"


def _worth_it(replayed: float, speed: float) -> bool:
    """Whether a policy within the loss budget is a speedup at all.

    By replay alone too: a factor measured elsewhere on the curve could make even escalating every token look fast.
    """
    return replayed > 1 and speed >= LEAST_SPEEDUP
