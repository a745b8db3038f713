"""Search for a hand-off policy: Optuna proposes settings, replay on traces evaluates them.

A threshold is searched as a quantile of the score, so that its scale is the same for every policy.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np
import optuna

from decoding.cost.costs import ModelCosts
from policies import Policy, token_classes
from train.common.job import Job
from train.replay.backoff import backoff
from train.search.goal import Goal, pareto, solve
from train.search.labels import labels
from train.search.policy_space import CONFIDENCE, HISTORY, START, TOKEN, fittable, make_policy, suggest_policy
from train.search.thresholds import cut, risks
from train.traces.handoff_traces import Traces

FEATURE_SETS = {
    "confidence": CONFIDENCE,
    "confidence+history": CONFIDENCE + HISTORY,
    "confidence+token": CONFIDENCE + TOKEN,
    "all": CONFIDENCE + HISTORY + TOKEN,
}
GRID = np.linspace(0.0, 1.0, 201)  # quantiles of a curve


@dataclass
class Search:
    """Fits on ``fit``, evaluates by replay on ``tune``.

    Speed is replayed on both: a policy's share of large calls differs so much between prompts that the few of ``tune``
    would miss a target speedup, and a dozen weights fitted on thousands of rows cannot have memorised their prompts.
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
    handoffs: Traces | None = None
    """the whole texts that hand-off wrote for fitting prompts; None: those of ``fit``"""

    @classmethod
    def of(cls, job: Job, traces: Traces, rows: Traces | None = None) -> Self:
        """The search of ``job`` on its fitting and tuning prompts; of the latter, on the texts that hand-off wrote.

        rows: those of fitting prompts to fit on, where they are not all of ``traces``. Rules are searched where the
        kind asked for cannot be fitted.
        """
        fit, tune = ({p.id for p in job.splits[name]} for name in ("fit", "tune"))
        how, classes = job.settings, token_classes(job.large.tokenizer)
        texts = traces.of(fit)
        fitted, handoffs = texts if rows is None else rows, texts.where(texts["trajectory"] != "large")
        kind = fittable(how.policy, labels(fitted, how.label), fitted["group"])
        some = fitted, traces.of(tune, "mixed", "policy")
        found = cls(kind, how.label, *some, job.cost, job.goal, classes, how.seed, handoffs=handoffs)
        return replace(found, goal=Goal(speedup=found.usual_speedup())) if job.goal.open else found

    def usual_speedup(self) -> float:
        """The speedup of random hand-off at the rate at which the models agree, in steps of 0.05 from 1.1.

        A policy that knew where the small model is right would lose nothing there.
        """
        agreed = np.mean(self.calls["small_token"] == self.calls["large_token"])
        found = np.interp(agreed, GRID, self.random_curve()[:, 0])
        return max(1.1, round(20 * float(found)) / 20)

    def baselines(self) -> list[dict]:
        """Settings that every search tries first."""
        starts = (0.3, 0.5, 0.7)
        if self.kind == "rule":
            rules = [("entropy", ">="), ("top1", "<="), ("margin", "<=")]
            return [{"feature": f, "direction": d, "quantile": q} for f, d in rules for q in starts]
        return [{"features": name, "quantile": q} | START[self.kind] for name in FEATURE_SETS for q in starts]

    def suggest(self, trial: optuna.Trial) -> dict:
        suggest_policy(trial, self.kind, CONFIDENCE + HISTORY, FEATURE_SETS)
        trial.suggest_float("quantile", 0.0, 1.0)
        return trial.params

    def __call__(self, trial: optuna.Trial) -> float:
        """The objective: replayed loss under a speedup constraint, or the other way round."""
        params = self.suggest(trial)
        return self.goal.record(trial, *self.point(self.policy(params), params["quantile"]))

    def policy(self, params: dict) -> Policy:
        """The fitted policy of ``params``, whatever its threshold: trials that differ in that only share it."""
        key = json.dumps({k: v for k, v in params.items() if k != "quantile"}, sort_keys=True)
        if key not in self.fitted:
            self.fitted[key] = self._fit(params)
        return self.fitted[key]

    def _fit(self, params: dict) -> Policy:
        policy = make_policy(self.kind, params, FEATURE_SETS, self.classes, self.seed)
        if self.kind == "rule":
            return policy
        return policy.fit(self.fit.table(policy.names), labels(self.fit, self.label), groups=self.fit["group"])

    def threshold(self, policy: Policy, quantile: float) -> float:
        """The score below which the share ``quantile`` of the positions in hand-off texts lies."""
        return cut(risks(policy, self.calls), quantile)

    def replay(self, policy: Policy, quantile: float) -> tuple[float, float]:
        """Predicted (speedup, loss) on the tuning traces where the small model writes about the share ``quantile``."""
        return backoff(self.tune, risks(policy, self.tune) >= self.threshold(policy, quantile), self.cost)

    def point(self, policy: Policy, quantile: float) -> tuple[float, float]:
        """The same with the speedup predicted on the prompts of ``fit`` too."""
        return self.curve(policy, [quantile])[0]

    def curve(self, policy: Policy, quantiles=GRID) -> np.ndarray:
        """[n, 2] predicted (speedup, loss) at every quantile."""
        tune, calls = risks(policy, self.tune), risks(policy, self.calls)
        limits = [cut(calls, q) for q in quantiles]
        return np.array([self._predict(tune >= limit, calls >= limit) for limit in limits])

    def thresholds(self, policy: Policy) -> list[dict]:
        """What replay predicts of other thresholds of ``policy``, each faster than those before it.

        ``policy.json`` carries them, so that a server finds the threshold of a speedup that a request asks for.
        """
        risk, found = risks(policy, self.calls), []
        for quantile, (speedup, loss) in zip(GRID[::4], self.curve(policy, GRID[::4]), strict=True):
            if not found or speedup > found[-1]["speedup"]:
                found.append({"threshold": cut(risk, quantile), "speedup": float(speedup), "loss": float(loss)})
        return found

    def front(self, settings: Iterable[dict]) -> list[dict]:
        """The Pareto front of (speedup, loss) over all thresholds of the policies of ``settings``, fastest first.

        A multi-objective study finds less, because a threshold needs no search: on the traces of the default pair the
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
        """The traces on which a speedup is predicted: the hand-off texts of all prompts."""
        own = self.fit.where(self.fit["trajectory"] != "large") if self.handoffs is None else self.handoffs
        return Traces.joined(own, self.tune)

    def first(self) -> Policy:
        """The best baseline by replay, at its best threshold for the goal, or at the median if none reaches it."""
        found = []
        for params in (params for params in self.baselines() if params["quantile"] == 0.5):
            policy = self.policy(params)
            curve = self.curve(policy)
            i = solve(curve, self.goal)
            found.append((i is None, 0.0 if i is None else self.goal.value(*curve[i]), len(found), policy, i))
        *_, policy, i = min(found)
        return policy.with_threshold(self.threshold(policy, 0.5 if i is None else GRID[i]))
