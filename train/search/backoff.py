"""Search for the policy: Optuna proposes, replay on traces judges, thresholds live in quantiles of the score."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import optuna

from decoding.cost.costs import ModelCosts
from policies import MLP, Logistic, Policy, Rule
from train.replay.backoff import backoff
from train.search.goal import Goal, pareto, solve
from train.search.labels import labels
from train.search.thresholds import cut, risks
from train.traces.handoff_traces import Traces

CONFIDENCE = ("entropy", "varentropy", "top1", "margin", "top10", "top10_mass")
HISTORY = ("position", "since_large", "agreed", "large_entropy", "mean_entropy", "mean_agreed", "repeated")
TOKEN = ("last_is_word_start", "last_is_digit", "last_is_punctuation", "last_is_newline")
FEATURE_SETS = {
    "confidence": CONFIDENCE,
    "confidence+history": CONFIDENCE + HISTORY,
    "confidence+token": CONFIDENCE + TOKEN,
    "all": CONFIDENCE + HISTORY + TOKEN,
}
GRID = np.linspace(0.0, 1.0, 201)


@dataclass
class Search:
    """Fits on ``fit``, judges by replay on ``tune``.

    Speed is replayed on both: a policy's share of large calls differs so much between prompts that the few of ``tune``
    would miss a target speedup, and a dozen weights fitted on thousands of rows do not know their prompts.
    """

    kind: str
    label: str
    fit: Traces
    tune: Traces
    cost: ModelCosts
    goal: Goal
    classes: object
    seed: int = 0
    fitted: dict[str, Policy] = field(default_factory=dict)

    @classmethod
    def on(cls, traces: Traces, splits: dict, **settings) -> Search:
        """On the prompts of ``splits`` that are fitted and tuned on: tuning sees what hand-off wrote."""
        fit = traces.of({p.id for p in splits["fit"]})
        return cls(fit=fit, tune=traces.of({p.id for p in splits["tune"]}, "mixed", "policy"), **settings)

    def suggest(self, trial: optuna.Trial) -> dict:
        if self.kind == "rule":
            trial.suggest_categorical("feature", list(CONFIDENCE + HISTORY))
            trial.suggest_categorical("direction", [">=", "<="])
        else:
            trial.suggest_categorical("features", list(FEATURE_SETS))
        if self.kind == "logistic":
            trial.suggest_float("C", 1e-4, 10.0, log=True)
        if self.kind == "mlp":
            trial.suggest_categorical("width", [8, 16, 32])
            trial.suggest_float("weight_decay", 1e-4, 1.0, log=True)
        trial.suggest_float("quantile", 0.0, 1.0)
        return trial.params

    def baselines(self) -> list[dict]:
        """Settings that every search tries first."""
        starts = (0.3, 0.5, 0.7)
        if self.kind == "rule":
            rules = [("entropy", ">="), ("top1", "<="), ("margin", "<=")]
            return [{"feature": f, "direction": d, "quantile": q} for f, d in rules for q in starts]
        extra = {"C": 0.1} if self.kind == "logistic" else {"width": 16, "weight_decay": 0.01}
        return [{"features": name, "quantile": q} | extra for name in FEATURE_SETS for q in starts]

    def __call__(self, trial: optuna.Trial) -> float:
        """The objective: replayed loss under a speedup constraint, or the other way round."""
        params = self.suggest(trial)
        speedup, loss = self.point(self.policy(params), params["quantile"])
        trial.set_user_attr("speedup", speedup)
        trial.set_user_attr("loss", loss)
        value = self.goal.value(speedup, loss)
        trial.set_constraint("goal", self.goal.violation(speedup, loss))  # write-once, so it comes last
        return value

    def policy(self, params: dict) -> Policy:
        """The fitted policy of ``params``, whatever its threshold: trials that differ in that only share it."""
        key = json.dumps({k: v for k, v in params.items() if k != "quantile"}, sort_keys=True)
        if key not in self.fitted:
            self.fitted[key] = self._fit(params)
        return self.fitted[key]

    def _fit(self, params: dict) -> Policy:
        if self.kind == "rule":
            return Rule(params["feature"], 0.0, params["direction"])
        names = FEATURE_SETS[params["features"]]
        if self.kind == "logistic":
            policy = Logistic(names, C=params["C"], classes=self.classes)
        else:
            policy = MLP(
                names, (params["width"],), weight_decay=params["weight_decay"], seed=self.seed, classes=self.classes
            )
        return policy.fit(self.fit.table(names), labels(self.fit, self.label), groups=self.fit["group"])

    def threshold(self, policy: Policy, quantile: float) -> float:
        """The score below which the share ``quantile`` of the positions lies that hand-off wrote."""
        return cut(risks(policy, self.calls), quantile)

    def replay(self, policy: Policy, quantile: float) -> tuple[float, float]:
        """(speedup, loss) predicted on the tuning traces when about the share ``quantile`` of positions is kept."""
        return backoff(self.tune, risks(policy, self.tune) >= self.threshold(policy, quantile), self.cost)

    def point(self, policy: Policy, quantile: float) -> tuple[float, float]:
        """The same with the speedup predicted on the prompts of ``fit`` too."""
        return self.curve(policy, [quantile])[0]

    def curve(self, policy: Policy, quantiles=GRID) -> np.ndarray:
        """[n, 2] predicted (speedup, loss) at every quantile."""
        tune, calls = risks(policy, self.tune), risks(policy, self.calls)
        limits = [cut(calls, q) for q in quantiles]
        return np.array([self._predict(tune >= limit, calls >= limit) for limit in limits])

    def front(self, settings: Iterable[dict]) -> list[dict]:
        """The Pareto front of (speedup, loss) over all thresholds of the policies of ``settings``, fastest first.

        It is no second, multi-objective study, for a threshold needs no search: on the traces of the default pair the
        curves of the four logistic baselines have a hypervolume of 1.34 over (1x, loss 0.5), and 150 trials with both
        objectives at most 1.27 (TPE) and 1.21 (NSGA-II).
        """
        kinds = {json.dumps({k: v for k, v in params.items() if k != "quantile"}): params for params in settings}
        return pareto(
            {"speedup": float(speedup), "loss": float(loss), "params": params | {"quantile": float(quantile)}}
            for params in kinds.values()
            for quantile, (speedup, loss) in zip(GRID, self.curve(self.policy(params)), strict=True)
        )

    def random_curve(self) -> np.ndarray:
        """[201, 2] predicted (speedup, loss) of random hand-off at the rates ``1 - GRID``."""
        draw = np.random.default_rng(self.seed)
        draws = draw.random(len(self.tune)), draw.random(len(self.calls))
        return np.array([self._predict(*(some >= q for some in draws)) for q in GRID])

    def _predict(self, tune: np.ndarray, calls: np.ndarray) -> tuple[float, float]:
        return backoff(self.calls, calls, self.cost)[0], backoff(self.tune, tune, self.cost)[1]

    @cached_property
    def calls(self) -> Traces:
        """The traces that a speedup is predicted on: what hand-off wrote, of all prompts."""
        return Traces.joined(self.fit.where(self.fit["trajectory"] != "large"), self.tune)

    def first(self) -> Policy:
        """The baseline that replay likes best, at the goal or, out of reach, at half the positions."""
        found = []
        for params in (params for params in self.baselines() if params["quantile"] == 0.5):
            policy = self.policy(params)
            curve = self.curve(policy)
            i = solve(curve, self.goal)
            found.append((i is None, 0.0 if i is None else self.goal.value(*curve[i]), len(found), policy, i))
        *_, policy, i = min(found)
        return policy.with_threshold(self.threshold(policy, 0.5 if i is None else GRID[i]))
