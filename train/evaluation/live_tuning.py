"""Live runs on the tuning prompts choose among the finalists of the search; texts of its own correct its threshold.

Replay evaluates a policy on texts that it did not write. The more of a text the small model writes, the surer it is of
itself, so that a policy tuned to 2x by replay may run at 3x, and a factor measured at one threshold is wrong at
another. So texts are written at the threshold itself, in batches, and their time is priced.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from policies import Policy
from policies.decoder_spec import DecoderSpec
from train.common import atomic
from train.common.generations import batches, places, seeds_of
from train.common.job import Job, Tuned
from train.common.progress import say
from train.common.rows import ThresholdRow
from train.evaluation import live
from train.evaluation.text_shards import TextBatch, written
from train.quality.metric import QualityMetric
from train.replay.pricing import alone, handoff
from train.search.backoff import GRID, Search
from train.search.goal import LEAST_SPEEDUP, Goal, solve
from train.workers.blueprint import Blueprint

ROUNDS = 4
LOOSEST = 1 / 3
"""least factor of a loss over the replayed one: once, a policy that lost next to nothing on ten prompts was let off
everything, and lost 0.56 for 0.05"""
NEAR = 0.0101  # of a quantile: about 2 % in speed


def tune_live(job: Job, search: Search, trials: list) -> Tuned | None:
    """Time the best trials on the tuning prompts, take the best and correct its threshold; None if none can do it."""
    options = [_option(search, trial) for trial in trials]
    measured = live.on_tuning(job, options)
    fitted = [search.policy(trial.params) for trial in trials]
    for option, policy in zip(options, fitted, strict=True):
        speed, loss = search.replay(policy, option.quantile)
        found, losses = live.speedup(measured, option.name), measured[option.name]["loss"]
        option.faster, option.worse = found / speed, loss_correction(job.metric, losses, loss)
        say(f"{option.name}: replay {speed:.3f}x at loss {loss:.4f}, live {found:.3f}x at loss {losses.mean():.4f}")
    # Each trial's own factor would favour the one whose few prompts went best, and promise its luck to the next ones.
    faster, able = float(np.median([option.faster for option in options])), []
    for option, policy in zip(options, fitted, strict=True):
        curve = search.curve(policy)
        i = solve(curve, job.goal, faster, option.worse)
        if i is not None:
            value = job.goal.value(curve[i, 0] * faster, curve[i, 1] * option.worse)
            able.append((value, option.trial, replace(option, policy=policy, quantile=float(GRID[i]))))
    if not able:
        return None
    rows = live.finished(job.folder / "tune.jsonl", measured, "", job.settings.batch_size)
    texts = {p.id: rows[p.id]["methods"] for p in job.splits["tune"]}
    references = {name: methods[live.LARGE]["answer"] for name, methods in texts.items()}
    probe = ThresholdProbe(job, search, references, clock(job, texts, measured), job.folder / "threshold.jsonl")
    return _correct_threshold(job, search, min(able)[-1], probe)


def _option(search: Search, trial) -> Tuned:
    policy, quantile = search.policy(trial.params), trial.params["quantile"]
    policy = policy.with_threshold(search.threshold(policy, quantile))
    return Tuned(policy, DecoderSpec("backoff"), trial.number, quantile)


def clock(job: Job, texts: dict[str, dict], measured: dict) -> float:
    """Live speedups over those that the timing table gives the same texts, the median of the finalists."""
    prompts, found = job.splits["tune"], []
    reference = alone(prompts, [texts[p.id][live.LARGE]["answer"] for p in prompts], job.cost)
    for name in measured.keys() - {live.LARGE}:
        own = handoff(prompts, [texts[p.id][name]["writers"] for p in prompts], job.cost)
        found.append(live.speedup(measured, name) / live.speedup({live.LARGE: reference, name: own}, name))
    return float(np.median(found))


def _correct_threshold(job: Job, search: Search, tuned: Tuned, probe: Callable) -> Tuned | None:
    """``tuned`` at the threshold that meets the goal by texts written there; None when no threshold does.

    Each of a few rounds writes texts at a quantile, compares them with replay, and takes the quantile that is best by
    the corrected curve. Where the rounds run out before texts were written near it, a loss budget takes no quantile
    beyond the largest at which texts kept to it.
    """
    policy, best = tuned.policy, tuned.quantile
    corrected = Corrected(search.curve(policy))
    for _ in range(ROUNDS):
        quantile = best
        speed, losses = probe(policy, tuned.trial, quantile)
        replayed = search.point(policy, quantile)
        corrected.factors[quantile] = speed / replayed[0], loss_correction(job.metric, losses, replayed[1])
        say(f"{tuned.name} at quantile {quantile:.3f}: {speed:.3f}x at loss {losses.mean():.4f}")
        best = corrected.solve(job.goal)
        if best is None:
            return None
        if corrected.knows(best):
            break
    else:
        best = corrected.within(job.goal, best)
    (replayed, _), (faster, worse) = search.point(policy, best), corrected.at(best)
    # By replay alone too: a factor measured elsewhere on the curve could make even escalating every token look fast.
    if job.goal.budget is not None and (replayed <= 1 or replayed * faster < LEAST_SPEEDUP):
        return None
    policy = policy.with_threshold(search.threshold(policy, best))
    return replace(tuned, policy=policy, quantile=best, faster=float(faster), worse=float(worse))


@dataclass
class Corrected:
    """Speed and loss by quantile as replay has them [201, 2], times factors known at a few quantiles."""

    replayed: np.ndarray
    factors: dict[float, tuple[float, float]] = field(default_factory=dict)  # by quantile: speed and loss over replay's

    def at(self, quantile: float) -> np.ndarray:
        """[2] the factors at a quantile: between those known, or the nearest."""
        known = sorted(self.factors)
        columns = np.array([self.factors[q] for q in known]).T
        return np.array([np.interp(quantile, known, column) for column in columns])

    def knows(self, quantile: float) -> bool:
        """Whether factors were measured so near that a few prompts tell no difference."""
        return min(abs(quantile - known) for known in self.factors) <= NEAR

    def within(self, goal: Goal, quantile: float) -> float:
        """``quantile``, or the largest below it at which texts kept to a loss budget, if they did at any."""
        if goal.budget is None:
            return quantile
        lost = lambda known: np.interp(known, GRID, self.replayed[:, 1]) * self.factors[known][1]  # noqa: E731
        kept = [known for known in self.factors if lost(known) <= goal.budget]
        return min(quantile, max(kept)) if kept else quantile

    def solve(self, goal: Goal) -> float | None:
        """The quantile that meets the goal best, None when none does."""
        i = solve(self.replayed * np.array([self.at(q) for q in GRID]), goal)
        return None if i is None else float(GRID[i])


@dataclass
class ThresholdProbe:
    """Measures a policy at a threshold: texts of the prompts fitted and tuned on, one line of ``path`` a threshold."""

    job: Job
    search: Search
    references: dict[str, list[int]]  # the large model's own answers to the tuning prompts
    clock: float  # live speedups over priced ones
    path: Path

    def __call__(self, policy: Policy, trial: int, quantile: float) -> tuple[float, np.ndarray]:
        """Speedup over the large model alone, on all these prompts, and the losses on those tuned on."""
        key = {"trial": trial, "quantile": round(quantile, 6)}
        found = next((row for row in atomic.read_rows(self.path, ThresholdRow) if key.items() <= row.items()), None)
        if found is None:
            policy = policy.with_threshold(self.search.threshold(policy, quantile))
            found = key | self._written(policy, f"texts at quantile {quantile:.3f}")
            atomic.append_rows(self.path, [found])
        return found["speedup"] * self.clock, np.array(found["losses"])

    def _written(self, policy: Policy, title: str) -> dict:
        job, grouped, at = self.job, batches(self.job.traced), places(self.job.traced)
        asked = {"policy": Blueprint.of(job.models, DecoderSpec("backoff"), policy)}
        parts = [
            TextBatch("policy", some, seeds_of(job.seeds, at[some[0].id]), [self.references.get(p.id) for p in some])
            for some in grouped
        ]
        texts: list[list[dict]] = [[] for _ in range(job.seeds)]
        for batch, rows in written(job, title, asked, dict(enumerate(parts))):
            for number, found in enumerate(texts):
                found += rows[number * len(batch.prompts) : (number + 1) * len(batch.prompts)]
        prompts = [prompt for some in grouped for prompt in some]
        large = alone(prompts, [range(self._length(p.id)) for p in prompts], job.cost)
        own = handoff(prompts * job.seeds, [row["writers"] for found in texts for row in found], job.cost)
        lost = {p.id: [row.get("loss") for row in rows] for p, *rows in zip(prompts, *texts, strict=True)}
        losses = [float(np.mean(lost[p.id])) for p in job.splits["tune"]]
        return {"speedup": live.speedup({live.LARGE: large, "own": own}, "own"), "losses": losses}

    def _length(self, prompt: str) -> int:
        """Tokens of the large model's own answer."""
        if prompt in self.references:
            return len(self.references[prompt])
        fit = self.search.fit
        return int(((fit["prompt"] == prompt) & (fit["trajectory"] == live.LARGE)).sum())


def loss_correction(metric: QualityMetric, losses: np.ndarray, replayed: float) -> float:
    """The factor from a replayed loss to the one that a budget is held against.

    Where texts lose less than replay said, a standard error is added, for they are few, and the factor is at least
    ``LOOSEST``: what is looser has to be borne out by texts written there, in a later round. A grader counts in units
    of its own, so there it may be any.
    """
    if replayed <= 0:
        return 1.0
    mean, error = float(losses.mean()), float(losses.std() / np.sqrt(len(losses)))
    if metric.grader is not None:
        return max((mean + error) / replayed, 0.0)
    return mean / replayed if mean >= replayed else min(max((mean + error) / replayed, LOOSEST), 1.0)
