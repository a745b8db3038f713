"""The job: what every step of a tuning run works on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from decoding import LM
from decoding.cost.costs import ModelCosts
from train.common.settings import FitPolicy
from train.data.prompts import Prompt
from train.quality.metric import QualityMetric
from train.search.goal import Goal


@dataclass
class Job:
    """Checked settings, loaded models, and the prompts of each split: fit, tune, holdout, and certify where asked."""

    settings: FitPolicy
    goal: Goal | None
    """None where nothing can be lost"""
    folder: Path
    small: LM
    large: LM
    splits: dict[str, list[Prompt]]
    cost: ModelCosts
    metric: QualityMetric

    @property
    def models(self) -> list[LM]:
        """[small, large]"""
        return [self.small, self.large]
