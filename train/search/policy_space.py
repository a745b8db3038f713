"""The policies that a search can propose: rules of one feature, or a kind that is fitted on a set of features."""

from collections.abc import Sequence
from typing import Any

import optuna

from policies import MLP, Logistic, Policy, Rule

CONFIDENCE = ("entropy", "varentropy", "top1", "margin", "top10", "top10_mass")
HISTORY = ("position", "since_large", "agreed", "large_entropy", "mean_entropy", "mean_agreed", "repeated")
TOKEN = ("last_is_word_start", "last_is_digit", "last_is_punctuation", "last_is_newline")
START = {"rule": {}, "logistic": {"C": 0.1}, "mlp": {"width": 16, "weight_decay": 0.01}}
"""settings of each kind that a search begins with"""


def suggest_policy(trial: optuna.Trial, kind: str, features: Sequence[str], sets: dict[str, Sequence[str]]) -> None:
    """Draw the settings of a policy: one of ``features`` for a rule, one of ``sets`` for a kind that is fitted."""
    if kind == "rule":
        trial.suggest_categorical("feature", list(features))
        trial.suggest_categorical("direction", [">=", "<="])
    else:
        trial.suggest_categorical("features", list(sets))
    if kind == "logistic":
        trial.suggest_float("C", 1e-4, 10.0, log=True)
    if kind == "mlp":
        trial.suggest_categorical("width", [8, 16, 32])
        trial.suggest_float("weight_decay", 1e-4, 1.0, log=True)


def make_policy(kind: str, params: dict[str, Any], sets: dict[str, Sequence[str]], classes, seed: int) -> Policy:
    """The policy that ``suggest_policy`` drew: a rule at threshold 0, or a kind that is still to be fitted."""
    if kind == "rule":
        return Rule(params["feature"], 0.0, params["direction"])
    names = sets[params["features"]]
    if kind == "logistic":
        return Logistic(names, C=params["C"], classes=classes)
    return MLP(names, (params["width"],), weight_decay=params["weight_decay"], seed=seed, classes=classes)
