"""The hand-off policies of the Backoff Decoding experiment, each calibrated to a share of escalated tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from decoding import LM, Backoff
from experiments.backoff_tables.oracles import kl_oracle, regret_oracle
from policies import MLP, Logistic, Policy, Random, Rule
from train.search.labels import labels
from train.search.thresholds import calibrate
from train.traces.handoff_traces import Traces


class Evenly(Policy):
    """Escalate at the share ``rate`` of positions, evenly spaced: periodic hand-off at any rate."""

    kind = "evenly"

    def __init__(self, rate: float):
        super().__init__(("position",), 0.5)
        self.rate = rate

    def _score(self, table: Tensor, hidden: Tensor | None) -> Tensor:
        # Counts due before and after a position: rounding may shift one by a position, but errors never add up.
        before, after = ((table[..., 0].double() + i) * self.rate - 1e-9 for i in (0, 1))
        return after.ceil().sub(before.ceil()).float()


@dataclass
class Fits:
    """Policies of one pair of models, fitted on the traces ``fit`` and calibrated on ``tune``."""

    fit: Traces
    tune: Traces
    names: tuple[str, ...]
    C: float
    cut: float
    """nats of KL(small || large) above which the published label is 1"""
    classes: Tensor | None = None
    seed: int = 0

    def at(self, key: str, rate: float) -> Policy:
        """The policy ``key`` with the threshold at which it escalates the share ``rate`` of the calibration traces."""
        return calibrate(getattr(self, key), self.tune, rate)

    def quantile(self, column: str, rate: float) -> float:
        """The value of a trace column that the share ``rate`` of the calibration traces exceeds."""
        return float(np.quantile(self.tune[column], 1.0 - rate))

    @cached_property
    def kl_logistic(self) -> Policy:
        return self._learned(Logistic(self.names, C=self.C, classes=self.classes), "kl")

    @cached_property
    def kl_mlp(self) -> Policy:
        network = MLP(self.names, (16,), weight_decay=0.01, seed=self.seed, classes=self.classes)
        return self._learned(network, "kl")

    @cached_property
    def saving(self) -> Policy:
        return self._learned(Logistic(self.names, C=self.C, classes=self.classes), "regret")

    @cached_property
    def entropy(self) -> Policy:
        return Rule("entropy", 0.0)

    @cached_property
    def top1(self) -> Policy:
        return Rule("top1", 0.0, "<=")

    def _learned(self, policy: Policy, label: str) -> Policy:
        return policy.fit(self.fit.table(self.names), labels(self.fit, label, self.cut), groups=self.fit["group"])


@dataclass(frozen=True)
class Method:
    """A line of the table: ``decoder(models, fits, rate)``, all three models and both fits if ``three``."""

    label: str
    decoder: Callable[[list[LM], list[Fits], float], Backoff]
    three: bool = False


def _fitted(key: str) -> Callable:
    return lambda models, fits, rate: Backoff([models[0], models[-1]], fits[0].at(key, rate))


def _three(key: str) -> Callable:
    """Both hand-offs at the square root of the rate: their product is the share of the largest model."""
    return lambda models, fits, rate: Backoff(models, [one.at(key, math.sqrt(rate)) for one in fits])


METHODS = {
    "kl_logistic": Method("published: logistic on KL > T", _fitted("kl_logistic")),
    "kl_mlp": Method("published: MLP on KL > T", _fitted("kl_mlp")),
    "saving": Method("logistic on the loss saved", _fitted("saving")),
    "entropy": Method("entropy", _fitted("entropy")),
    "top1": Method("largest probability (BiLD's fallback)", _fitted("top1")),
    "random": Method("random", lambda models, fits, rate: Backoff([models[0], models[-1]], Random(rate))),
    "periodic": Method("evenly spaced", lambda models, fits, rate: Backoff([models[0], models[-1]], Evenly(rate))),
    "kl_oracle": Method(
        "oracle: KL > T", lambda models, fits, rate: kl_oracle([models[0], models[-1]], fits[0].quantile("kl", rate))
    ),
    "regret_oracle": Method(
        "oracle: regret > T",
        lambda models, fits, rate: regret_oracle([models[0], models[-1]], fits[0].quantile("regret", rate)),
    ),
    "three_kl": Method("three models, logistic on KL > T", _three("kl_logistic"), three=True),
    "three_saving": Method("three models, logistic on the loss saved", _three("saving"), three=True),
    "three_random": Method(
        "three models, random",
        lambda models, fits, rate: Backoff(models, [Random(math.sqrt(rate)) for _ in fits]),
        three=True,
    ),
}
"""Every method by its key."""
