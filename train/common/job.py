"""The job that every step of a tuning run works on, and the tuned decoder that comes of it."""

from dataclasses import dataclass, field
from pathlib import Path

from decoding import LM, Sampling
from decoding.cost.costs import ModelCosts
from decoding.decoders.registry import build_decoder
from policies import Policy
from policies.decoder_spec import DecoderSpec
from train.common.drawing import texts_a_prompt
from train.common.settings import FitPolicy
from train.data.prompts import Prompt
from train.quality.metric import QualityMetric
from train.search.goal import Goal
from train.workers.blueprint import Blueprint
from train.workers.crew import ALONE, Crew


@dataclass
class Job:
    """Checked settings, loaded models, and the prompts of each split: fit, tune, holdout, and certify where asked."""

    settings: FitPolicy
    goal: Goal | None  # None where nothing can be lost
    folder: Path
    small: LM
    large: LM
    splits: dict[str, list[Prompt]]
    cost: ModelCosts
    metric: QualityMetric
    crew: Crew = field(default=ALONE, kw_only=True)  # makes traces and texts; timed runs are this process's own

    @property
    def models(self) -> list[LM]:
        """[small, large]"""
        return [self.small, self.large]

    @property
    def traced(self) -> list[Prompt]:
        """The prompts of the traces: those fitted and tuned on."""
        return self.splits["fit"] + self.splits["tune"]

    @property
    def sampling(self) -> Sampling:
        """The sampling of every text of the job: of traces, of live runs, held out and certified."""
        return self.settings.drawing.sampling()

    @property
    def seeds(self) -> int:
        """Texts that a loss of one prompt is the mean of."""
        return texts_a_prompt(self.settings)

    @property
    def new(self) -> int:
        """Tokens of an answer, at most."""
        return self.settings.max_new_tokens


@dataclass
class Tuned:
    """A policy at its threshold, the decoder that asks it, and how live runs on the tuning prompts compared."""

    policy: Policy  # ``Rule.never()`` where no policy ends a draft
    spec: DecoderSpec
    trial: int  # number of the trial it came from
    quantile: float | None  # share of the scores below the threshold; None without one
    faster: float = 1.0  # speedup over the predicted one
    worse: float = 1.0  # loss over the predicted one

    @property
    def name(self) -> str:
        return f"trial {self.trial}"

    def decoder(self, models):
        """The decoder on ``models``, cheapest first."""
        return build_decoder(models, self.policy.to(models[-1].device), self.spec)

    def blueprint(self, models) -> Blueprint:
        """The decoder on ``models``, and what other processes make it of."""
        return Blueprint(self.decoder(models), self.spec, self.policy)
