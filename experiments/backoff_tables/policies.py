"""The hand-off policies of the Backoff Decoding experiment, each calibrated to a share of escalated tokens."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from decoding import LM, Backoff
from experiments.backoff_tables.oracles import oracle
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

    def at(self, key: str, rate: float) -> Policy:
        """The policy ``key`` with the threshold at which it escalates the share ``rate`` of the calibration traces."""
        return calibrate(getattr(self, key), self.tune, rate)

    def quantile(self, column: str, rate: float) -> float:
        """The value of a trace column that the share ``rate`` of the calibration traces exceeds."""
        return float(np.quantile(self.tune[column], 1.0 - rate))

    entropy = Rule("entropy", 0.0)
    top1 = Rule("top1", 0.0, "<=")

    @cached_property
    def kl_logistic(self) -> Policy:
        return self._learned(Logistic(self.names, C=self.C, classes=self.classes), "kl")

    @cached_property
    def kl_mlp(self) -> Policy:
        return self._learned(MLP(self.names, (16,), weight_decay=0.01, seed=0, classes=self.classes), "kl")

    @cached_property
    def saving(self) -> Policy:
        return self._learned(Logistic(self.names, C=self.C, classes=self.classes), "regret")

    def _learned(self, policy: Policy, label: str) -> Policy:
        return policy.fit(self.fit.table(self.names), labels(self.fit, label, self.cut), groups=self.fit["group"])


@dataclass(frozen=True)
class Method:
    """A line of the table: ``decoder(models, fits, rate)``, all three models and both fits if ``three``."""

    label: str
    decoder: Callable[[list[LM], list[Fits], float], Backoff]
    three: bool = False


def _two(label: str, policy: Callable[[Fits, float], Policy]) -> Method:
    return Method(label, lambda models, fits, rate: Backoff([models[0], models[-1]], policy(fits[0], rate)))


def _oracle(label: str, column: str, feature: str) -> Method:
    cut = lambda fits, rate: fits[0].quantile(column, rate)  # noqa: E731
    return Method(label, lambda models, fits, rate: oracle([models[0], models[-1]], feature, cut(fits, rate)))


def _three(label: str, policy: Callable[[Fits, float], Policy]) -> Method:
    """Both hand-offs at the square root of the rate: their product is the share of the largest model."""
    each = lambda fits, rate: [policy(one, math.sqrt(rate)) for one in fits]  # noqa: E731
    return Method(label, lambda models, fits, rate: Backoff(models, each(fits, rate)), three=True)


METHODS = {
    "kl_logistic": _two("published: logistic on KL > T", lambda fits, rate: fits.at("kl_logistic", rate)),
    "kl_mlp": _two("published: MLP on KL > T", lambda fits, rate: fits.at("kl_mlp", rate)),
    "saving": _two("logistic on the loss saved", lambda fits, rate: fits.at("saving", rate)),
    "entropy": _two("entropy", lambda fits, rate: fits.at("entropy", rate)),
    "top1": _two("largest probability (BiLD's fallback)", lambda fits, rate: fits.at("top1", rate)),
    "random": _two("random", lambda fits, rate: Random(rate)),
    "periodic": _two("evenly spaced", lambda fits, rate: Evenly(rate)),
    "kl_oracle": _oracle("oracle: KL > T", "kl", "kl"),
    "regret_oracle": _oracle("oracle: regret > T", "regret", "target_regret"),
    "three_kl": _three("three models, logistic on KL > T", lambda fits, rate: fits.at("kl_logistic", rate)),
    "three_saving": _three("three models, logistic on the loss saved", lambda fits, rate: fits.at("saving", rate)),
    "three_random": _three("three models, random", lambda fits, rate: Random(rate)),
}
"""Every method by its key."""
