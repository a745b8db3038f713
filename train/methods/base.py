"""The interface of tuning methods, which ``train.pipeline`` calls from top to bottom."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import ClassVar, Protocol

import optuna

from decoding import LM
from train.common.job import Job, Tuned
from train.common.result import Holdout, Prediction
from train.common.settings import FitPolicy
from train.data.prompts import Prompt
from train.search.goal import LEAST_SPEEDUP, Goal

USUAL = Goal(speedup=1.3)
FALLBACK = "use the large model alone, or exact speculative decoding"


class Search(Protocol):
    """The objective of a study."""

    def baselines(self) -> list[dict]:
        """Parameters of the trials that every study begins with."""

    def __call__(self, trial: optuna.Trial) -> float:
        """The value to minimise; sets the constraint "goal" where there is one."""


class TuningMethod(Protocol):
    """A way to tune a decoder. Subclass it in a file of this folder and name the class in ``METHODS``.

    The class is asked first, before models are loaded: ``goal`` and ``certifiable``, then ``check_traces``. An instance
    holds the traces of its job, and is asked for its ``search``, ``tune``, ``measure_holdout``, ``predicted`` and
    ``provenance``, in this order. The attributes from ``plane`` on are for the report.
    """

    certifiable: ClassVar[bool] = False  # whether ``measure_holdout`` makes the promise that ``--certify`` asks for
    draws: ClassVar[bool] = False  # whether it tunes for texts that are drawn at a ``--temperature`` too
    least: ClassVar[dict[str, int]] = {}
    """settings that must be at least this"""
    plane: ClassVar[tuple[str, str]] = ("speedup", "loss")
    """the columns of a method that the report plots, across and up"""
    threshold_note: ClassVar[str]  # what happens at a token whose risk reaches the threshold, a sentence
    label: str  # what a learned policy of this method predicts
    search: Search

    def __init__(self, job: Job):
        """Collect the traces of ``job``, or read those that it was given."""

    @classmethod
    def goal(cls, settings: FitPolicy) -> Goal | None:
        """The goal asked for; None where nothing can be lost. ValueError, one sentence, for one that makes no sense."""
        goal = asked_goal(settings)
        return USUAL if goal.open else goal

    @classmethod
    def check_traces(cls, settings: FitPolicy, small: LM, large: LM, splits: dict[str, Sequence[Prompt]]) -> None:
        """TraceError when the traces in ``settings.traces`` are not of these models and prompts."""

    def tune(self, study: optuna.Study) -> Tuned | None:
        """The finished study's best by live runs on the tuning prompts; None, and a printed reason, if none is."""

    def measure_holdout(self, tuned: Tuned) -> Holdout:
        """Measurements of ``tuned`` and its controls on the hold-out. A certificate may lower its threshold."""

    def predicted(self, tuned: Tuned) -> Prediction:
        """The prediction for ``tuned`` from before the held-out prompts were touched."""

    def provenance(self, tuned: Tuned) -> dict:
        """The part of policy.json that only this method writes: the decoder (``policies.decoder_spec``)."""
        return {"decoder": asdict(tuned.spec)}


def asked_goal(settings: FitPolicy) -> Goal:
    """The goal of a method that trades loss for speed; open if neither a speedup nor a budget is asked for."""
    speedup, budget = settings.target_speedup, settings.quality_budget
    if speedup is not None and budget is not None:
        raise ValueError("give --target-speedup or --quality-budget, not both")
    if budget is not None:
        if not 0 < budget < 1:
            raise ValueError(f"--quality-budget is a mean loss between 0 and 1, not {budget:g}")
        return Goal(budget=budget)
    if speedup is not None and not 1 < speedup < 1000:
        raise ValueError(f"--target-speedup is a factor over 1, not {speedup:g}")
    return Goal(speedup=speedup)


def no_speedup(goal: Goal) -> str:
    """The sentence about a loss budget that no trial meets faster than the large model alone."""
    return f"a loss of {goal.budget:g} allows no speedup over {LEAST_SPEEDUP:g}x with this pair: {FALLBACK}"
