"""The policies that a search can propose: rules of one feature, or a kind that is fitted on a set of features."""

from collections.abc import Sequence
from typing import Any

import numpy as np
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


def why_not_fitted(kind: str, labels: np.ndarray, groups: np.ndarray) -> str | None:
    """Why no policy of ``kind`` can be fitted to ``labels`` [n] of ``groups`` [n]; None where one can, or need not."""
    if kind == "rule":
        return None
    if not labels.any() or (labels == 1).all():
        return f"all its {len(labels):,} labels are {int(labels.any())}, so there is nothing to tell apart"
    if kind == "mlp" and len(np.unique(groups)) < 2:
        return "it is validated on other groups of prompts than it is fitted on, and there is only one"
    return None


def fittable(kind: str, labels: np.ndarray, groups: np.ndarray) -> str:
    """``kind``, or "rule", which is never fitted, where ``why_not_fitted`` has a reason."""
    return kind if why_not_fitted(kind, labels, groups) is None else "rule"


def one_sided(kind: str, labels: np.ndarray, groups: np.ndarray, agreed: np.ndarray, longest: int) -> str | None:
    """The sentence about a pair that always or never agrees, and about a kind that cannot be fitted; None for others.

    agreed: bool [positions], whether the small model would write what the large one does.
    """
    found, why = [], why_not_fitted(kind, labels, groups)
    if agreed.all():
        use = f"use the small one alone, or exact drafts of {longest}"
        found.append(f"the models agree on all {len(agreed):,} positions: {use}")
    elif not agreed.any():
        found.append(f"the models disagree on all {len(agreed):,} positions: use the large one alone")
    if why is not None:
        found.append(f"no {kind} policy can be fitted ({why}); rules are searched instead")
    return "; ".join(found) or None
