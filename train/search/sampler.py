"""The sampler of a search that one process leads: a stopped search goes on with the proposals it would have made."""

import hashlib
import json
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial


class RepeatableSampler(BaseSampler):
    """Optuna's TPE with draws of their own for every parameter of every trial.

    A proposal depends on the seed, the number of the trial, the parameter and the finished trials, and not on how many
    draws this process has made: neither on the process, nor on how much of the trial it has read from the disk.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        digest = hashlib.sha256(json.dumps([self.seed, trial.number, param_name]).encode()).digest()
        inner = TPESampler(seed=int.from_bytes(digest[:4], "big"))
        return inner.sample_independent(study, trial, param_name, param_distribution)
