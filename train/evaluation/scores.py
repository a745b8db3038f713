"""Scores of a grader on the held-out prompts: beside the large model's, and how well guarded regret predicts them."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr

from train.common.result import Grading, MethodRow
from train.evaluation import live
from train.evaluation.holdout_texts import Columns
from train.quality.graders.grader import Grader


def score_fields(own: Columns) -> dict:
    """The fields of a MethodRow that only a grader gives, with 95 % bootstrap intervals over prompts."""
    if np.isnan(own["score"]).any():
        return {}
    found = {}
    for name, values in (("score", own["score"]), ("score_difference", -own["loss"]), ("guarded", own["guarded"])):
        found[name] = float(values.mean()) + 0.0  # no negative zero
        found[f"{name}_interval"] = live.bootstrap(lambda rows, values=values: values[rows].mean(), len(values))
    return found


def grading(grader: Grader | None, texts: Mapping[str, Columns], lossy: Sequence[str]) -> Grading | None:
    """What ``grader`` gave to the texts of the methods ``lossy``; None without a grader."""
    if grader is None or not lossy:
        return None
    guarded, lost = (np.stack([texts[key][name] for key in lossy]) for name in ("guarded", "loss"))
    methods, every = rank_correlation(guarded.mean(1), lost.mean(1)), rank_correlation(guarded.ravel(), lost.ravel())
    return Grading(grader.name, len(grader.failed), len(lossy), methods, guarded.size, every)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's; None for fewer than three pairs, and where one of the two does not vary."""
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(spearmanr(one, other).statistic)


def beside_large(tuned: MethodRow, large: MethodRow) -> str:
    """The tuned decoder's score in a sentence; empty without a grader."""
    if tuned.score is None:
        return ""
    low, high = tuned.score_difference_interval
    return (
        f" Its score is {tuned.score:.3f} and the large model's {large.score:.3f} (difference "
        f"{tuned.score_difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}); {tuned.at_cap:.0%} and "
        f"{large.at_cap:.0%} of the answers ran into the length cap."
    )
