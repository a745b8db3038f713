"""Search for how long to draft: Optuna proposes a stop, a length and a threshold; draft traces are replayed.

Replay is exact in counts, and takes its seconds from the timing table. The output is the large model's own whatever is
drafted, so nothing can be lost and there is no constraint.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import optuna
import torch
from torch import Tensor

from decoding.cost.costs import ModelCosts
from policies import Policy, Rule, Survival, feature_columns
from train.replay.speculative import Replay, Replayed
from train.search.policy_space import CONFIDENCE, START, TOKEN, make_policy, suggest_policy
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
"""No feature looks back over rounds, so the risk of every step of every draft is known whatever the threshold."""
OF_THE_STOP = ("stop", "feature", "direction", "features", "C", "width", "weight_decay")
"""parameters of a stop itself, apart from its threshold and the draft around it"""
HF_CONFIDENCE = 0.4  # top-1 probability below which transformers' assistant ends its draft by default


@dataclass
class StopSearch:
    """Fits stops on the draft traces ``fit`` and evaluates them by replay on ``judged``, which holds ``fit`` too.

    A dozen weights fitted on thousands of steps cannot have memorised their prompts, and the time that a draft length
    saves differs so much between prompts that the few of the tuning split would choose at random.
    """

    kind: str
    fit: DraftTraces
    judged: DraftTraces
    cost: ModelCosts
    classes: Tensor
    seed: int = 0
    fitted: dict[str, Policy | Survival] = field(default_factory=dict)
    risks: dict[str, Tensor] = field(default_factory=dict)

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
        """The parameters that ``suggest_stop`` would draw for a stop at its own threshold."""
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
        """The first settings of the kind: drafts slightly longer than the best constant length."""
        start = {"stop": self.kind, "length": min(self.constant() + 1, self.judged.longest), "keep": True}
        if self.kind == "rule":
            kinds = [{"feature": "top1", "direction": "<="}, {"feature": "entropy", "direction": ">="}]
        else:
            kinds = [{"features": name} | START[self.kind] for name in STOP_FEATURES]
        return [start | kind | {"quantile": q} for kind in kinds for q in (0.4, 0.6, 0.8)]

    def suggest(self, trial: optuna.Trial) -> dict:
        """Draw a constant length, a rule, the survival of the whole draft, or the kind that is fitted."""
        suggest_stop(trial, ("constant", "rule", "survival", self.kind), self.judged.longest)
        return trial.params

    def __call__(self, trial: optuna.Trial) -> float:
        """The objective: replayed seconds per token."""
        trial.set_user_attr("speedup", self.speedup(self.suggest(trial)))
        return self.alone / int(self.judged.tokens.sum()) / trial.user_attrs["speedup"]

    def speedup(self, params: dict) -> float:
        """Replayed speedup over the large model alone."""
        return self.alone / float(self.replayed(params).seconds(self.cost).sum())

    def replayed(self, params: dict) -> Replayed:
        """The counts that drafting with ``params`` would have had."""
        stop = None if params["stop"] == "constant" else self.stop(params)
        # The least length of a survival does not depend on its risk.
        score = None if params["stop"] in ("constant", "survival") else self.risk(params)[1]
        return self.replay(stop, params["length"], params.get("keep", False), score=score)

    def stop(self, params: dict) -> Policy | Survival:
        """A stop of its own for ``params``, at its threshold; ``Rule.never()`` for a constant length."""
        if params["stop"] == "constant":
            return Rule.never()
        (stop, _), threshold = self.risk(params), self.threshold(params)
        if isinstance(stop, Survival):
            return Survival(threshold=min(max(threshold, 0.0), 1 - 1e-6), window=self.judged.longest)
        return stop.with_threshold(threshold)

    def threshold(self, params: dict) -> float:
        """The risk below which the share ``quantile`` of the possible draft steps lies."""
        return cut(self.risk(params)[1][self.steps].numpy().astype(float), params["quantile"])

    def risk(self, params: dict) -> tuple[Policy | Survival, Tensor]:
        """The stop of ``params``, apart from its threshold, and its risk [positions, longest] at every step."""
        key = json.dumps({k: v for k, v in params.items() if k in OF_THE_STOP}, sort_keys=True)
        if key not in self.fitted:
            self.fitted[key] = self._fit(params)
            risk = self.replay.scores(self.fitted[key])
            self.risks[key] = torch.where(risk.isnan(), torch.inf, risk)
        return self.fitted[key], self.risks[key]

    def _fit(self, params: dict) -> Policy | Survival:
        if params["stop"] == "survival":
            return Survival(window=self.judged.longest)
        policy = make_policy(params["stop"], params, STOP_FEATURES, self.classes, self.seed)
        if params["stop"] == "rule":
            return policy
        return policy.fit(*rejections(self.fit, policy.names, self.classes))

    @cached_property
    def replay(self) -> Replay:
        return Replay(self.judged, self.seed)

    @cached_property
    def steps(self) -> Tensor:
        return within(self.judged)

    @cached_property
    def alone(self) -> float:
        """Seconds of the large model alone for all texts."""
        return float(self.cost.text(-1, self.judged.prompt_tokens, self.judged.tokens).sum())


def suggest_stop(trial: optuna.Trial, stops: Sequence[str], longest: int) -> None:
    """Draw one of ``stops`` with its settings, and the longest draft."""
    stop = trial.suggest_categorical("stop", list(dict.fromkeys(stops)))
    trial.suggest_int("length", 1, longest)
    if stop not in ("constant", "survival"):
        suggest_policy(trial, stop, CONFIDENCE + ROUND, STOP_FEATURES)
    if stop != "constant":
        trial.suggest_categorical("keep", [False, True])
        trial.suggest_float("quantile", 0.0, 1.0)


def within(traces: DraftTraces) -> Tensor:
    """bool [positions, longest]: the draft steps possible from a position, before the end and within the budget."""
    rows = traces.on_path
    room = traces.budget - traces["position"][rows] - 1
    return torch.from_numpy((traces["token"][rows] >= 0)[:, None] & (np.arange(traces.longest) < room[:, None]))


def first_accepted(traces: DraftTraces) -> np.ndarray:
    """bool [positions where a draft can begin]: whether its first token is accepted."""
    return (Replay(traces).texts.accepted_run > 0)[within(traces)[:, 0].numpy()]


def rejections(traces: DraftTraces, names, classes) -> tuple[np.ndarray, np.ndarray, None, np.ndarray]:
    """(columns [n, features], labels [n] 0 or 1, no weights, prompt of each row) of every step up to the first wrong.

    The label is whether the next drafted token will be rejected. Later steps of the draft are left out: a stop that
    works has ended it.
    """
    replay = Replay(traces)
    place = torch.arange(traces.longest)
    run = torch.from_numpy(replay.texts.accepted_run)[:, None]
    used = within(traces) & (place <= run)
    table = feature_columns(replay.drafts.everywhere, names, classes=classes)[used]
    groups = np.repeat(traces["group"][traces.on_path], used.sum(1).numpy())
    return table.numpy(), (place == run)[used].float().numpy(), None, groups
