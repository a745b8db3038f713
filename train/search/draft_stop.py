"""Search for how long to draft: Optuna proposes a stop, a length and a threshold, replay on draft traces judges.

The judgement is exact in counts, and its seconds are those of the timing table. The output is the large model's own
whatever is drafted, so nothing can be lost and there is no constraint.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import optuna
import torch
from torch import Tensor

from decoding.cost.costs import ModelCosts, text_seconds
from policies import MLP, Logistic, Policy, Rule, Survival, feature_columns
from train.replay.speculative import Replay, Replayed
from train.search.backoff import CONFIDENCE, TOKEN
from train.search.recipes import RECIPES
from train.search.thresholds import cut
from train.traces.draft_traces import DraftTraces

ROUND = ("position", "since_large", "large_entropy", "repeated")
STOP_FEATURES = {
    "confidence": CONFIDENCE,
    "confidence+round": CONFIDENCE + ROUND,
    "confidence+token": CONFIDENCE + TOKEN,
    "all": CONFIDENCE + ROUND + TOKEN,
}
"""None looks back over rounds: the risk at every step of every draft is then known at once, whatever the threshold."""
OF_THE_STOP = ("stop", "feature", "direction", "features", "C", "width", "weight_decay")
"""what a stop is made of, whatever its threshold and the draft around it"""
HF_CONFIDENCE = 0.4
"""top-1 probability below which transformers' assistant ends its draft by default"""


@dataclass
class StopSearch:
    """Fits stops on the draft traces ``fit`` and judges them by replay on ``judged``, which holds ``fit`` too.

    A dozen weights fitted on thousands of steps do not know their prompts, and the time that a draft length saves
    differs so much between prompts that the few of the tuning split would choose by chance.
    """

    kind: str
    fit: DraftTraces
    judged: DraftTraces
    cost: ModelCosts
    classes: Tensor
    seed: int = 0
    fitted: dict[str, Policy | Survival] = field(default_factory=dict)
    risks: dict[str, Tensor] = field(default_factory=dict)

    def suggest(self, trial: optuna.Trial) -> dict:
        """The space: a constant length, a rule, the survival of the whole draft, or the kind that is fitted."""
        suggest_stop(trial, ("constant", "rule", "survival", self.kind), self.judged.longest)
        return trial.params

    def baselines(self) -> list[dict]:
        """Every constant length, the published stops at their own thresholds, and the kind at some of its own."""
        longest = self.judged.longest
        return [
            *({"stop": "constant", "length": n} for n in range(1, longest + 1)),
            *(self.published(**RECIPES[name].options()) for name in ("svip", "adaedl", "specdec++")),
            self.published(longest, Rule("top1", HF_CONFIDENCE, "<="), keep_stop_token=True),
            *self.starts(),
        ]

    def published(self, length: int, stop, keep_stop_token: bool = False, **_) -> dict:
        """What ``suggest`` would have to draw for a stop at its own threshold."""
        rule = {} if isinstance(stop, Survival) else {"feature": stop.feature, "direction": stop.direction}
        params = {"stop": "survival" if not rule else "rule", "length": min(length, self.judged.longest)} | rule
        _, risk = self.risk(params)
        below = float((risk[self.steps] < float(stop.threshold)).float().mean())
        return params | {"keep": keep_stop_token, "quantile": below}

    def constants(self) -> list[tuple[int, float]]:
        """(length, replayed speedup) of every constant draft length."""
        lengths = range(1, self.judged.longest + 1)
        return [(n, self.speedup({"stop": "constant", "length": n})) for n in lengths]

    def constant(self) -> int:
        """The best constant draft length."""
        return max(self.constants(), key=lambda pair: pair[1])[0]

    def starts(self) -> list[dict]:
        """Where the search for the kind begins: drafts of little more than the best constant length."""
        start = {"stop": self.kind, "length": min(self.constant() + 1, self.judged.longest), "keep": True}
        if self.kind == "rule":
            kinds = [{"feature": "top1", "direction": "<="}, {"feature": "entropy", "direction": ">="}]
        else:
            extra = {"C": 0.1} if self.kind == "logistic" else {"width": 16, "weight_decay": 0.01}
            kinds = [{"features": name} | extra for name in STOP_FEATURES]
        return [start | kind | {"quantile": q} for kind in kinds for q in (0.4, 0.6, 0.8)]

    def __call__(self, trial: optuna.Trial) -> float:
        """The objective: replayed seconds per token."""
        params = self.suggest(trial)
        trial.set_user_attr("speedup", self.speedup(params))
        return self.alone / self.tokens / trial.user_attrs["speedup"]

    def speedup(self, params: dict) -> float:
        """Over the large model alone, as replayed on all that is judged."""
        return self.alone / float(self.replayed(params).seconds(self.cost).sum())

    def replayed(self, params: dict) -> Replayed:
        """What drafting so would have counted on all that is judged."""
        stop, score = (None, None) if params["stop"] == "constant" else self._at(params)
        return self.replay(stop, params["length"], params.get("keep", False), score=score)

    def _at(self, params: dict):
        """(a stop of its own for ``params``, at its threshold; its risks where replay may take them)."""
        stop, risk = self.risk(params)
        threshold = self.threshold(params)
        if isinstance(stop, Survival):  # its least length is no matter of the risk
            return Survival(threshold=min(max(threshold, 0.0), 1 - 1e-6), window=self.judged.longest), None
        return stop.with_threshold(threshold), risk

    def stop(self, params: dict):
        """The stop of ``params``, ready for a decoder; None for a constant length."""
        return None if params["stop"] == "constant" else self._at(params)[0]

    def threshold(self, params: dict) -> float:
        """The risk below which the share ``quantile`` of the steps lies that drafts could take."""
        return cut(self.risk(params)[1][self.steps].numpy().astype(float), params["quantile"])

    def risk(self, params: dict) -> tuple[Policy | Survival, Tensor]:
        """The stop of ``params``, whatever its threshold, and its risk [positions, longest] at every step."""
        key = json.dumps({k: v for k, v in params.items() if k in OF_THE_STOP}, sort_keys=True)
        if key not in self.fitted:
            self.fitted[key] = self._fit(params)
            risk = self.replay.scores(self.fitted[key])
            self.risks[key] = torch.where(risk.isnan(), torch.inf, risk)
        return self.fitted[key], self.risks[key]

    def _fit(self, params: dict) -> Policy | Survival:
        if params["stop"] == "survival":
            return Survival(window=self.judged.longest)
        if params["stop"] == "rule":
            return Rule(params["feature"], 0.0, params["direction"])
        names = STOP_FEATURES[params["features"]]
        if params["stop"] == "logistic":
            policy = Logistic(names, C=params["C"], classes=self.classes)
        else:
            policy = MLP(
                names, (params["width"],), weight_decay=params["weight_decay"], seed=self.seed, classes=self.classes
            )
        return policy.fit(*rejections(self.fit, names, self.classes))

    @cached_property
    def replay(self) -> Replay:
        return Replay(self.judged, self.seed)

    @cached_property
    def steps(self) -> Tensor:
        return within(self.judged)

    @cached_property
    def alone(self) -> float:
        """Seconds of the large model alone for all that is judged."""
        return float(text_seconds(self.cost.large, self.judged.prompt_tokens, self.judged.tokens).sum())

    @cached_property
    def tokens(self) -> int:
        return int(self.judged.tokens.sum())


def suggest_stop(trial: optuna.Trial, stops: Sequence[str], longest: int) -> None:
    """Draw one of ``stops`` with its settings, and the longest draft."""
    stop = trial.suggest_categorical("stop", list(dict.fromkeys(stops)))
    trial.suggest_int("length", 1, longest)
    if stop == "rule":
        trial.suggest_categorical("feature", list(CONFIDENCE + ROUND))
        trial.suggest_categorical("direction", [">=", "<="])
    if stop in ("logistic", "mlp"):
        trial.suggest_categorical("features", list(STOP_FEATURES))
    if stop == "logistic":
        trial.suggest_float("C", 1e-4, 10.0, log=True)
    if stop == "mlp":
        trial.suggest_categorical("width", [8, 16, 32])
        trial.suggest_float("weight_decay", 1e-4, 1.0, log=True)
    if stop != "constant":
        trial.suggest_categorical("keep", [False, True])
        trial.suggest_float("quantile", 0.0, 1.0)


def within(traces: DraftTraces) -> Tensor:
    """bool [positions, longest] which steps a draft from a position can take: before the end, within the budget."""
    rows = traces.on_path
    room = traces.budget - traces["position"][rows] - 1
    return torch.from_numpy((traces["token"][rows] >= 0)[:, None] & (np.arange(traces.longest) < room[:, None]))


def rejections(traces: DraftTraces, names, classes) -> tuple[np.ndarray, np.ndarray, None, np.ndarray]:
    """(columns [n, features], labels [n] 0 or 1, no weights, prompt of each row) of every step up to the first wrong.

    The label is whether the next drafted token will be rejected. What a draft does after that is no state to learn
    from: a stop that works has ended it.
    """
    replay = Replay(traces)
    place = torch.arange(traces.longest)
    run = torch.from_numpy(replay.texts.accepted_run)[:, None]
    used = within(traces) & (place <= run)
    table = feature_columns(replay.drafts.everywhere, names, classes=classes)[used]
    groups = np.repeat(traces["group"][traces.on_path], used.sum(1).numpy())
    return table.numpy(), (place == run)[used].float().numpy(), None, groups
