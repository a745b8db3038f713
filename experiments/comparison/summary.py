"""One row for each method: means over prompts, with 95 % paired bootstrap intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.comparison.methods import Method
from experiments.shared.estimates import estimate
from train.data.prompts import Prompt
from train.evaluation.live import LARGE, groups_of, speedup

DRAWS, FAMILY_DRAWS = 2000, 500
Columns = dict[str, np.ndarray]


@dataclass
class Measured:
    """Columns [prompts] of texts and times, by canonical method."""

    methods: dict[str, Method]
    prompts: Sequence[Prompt]
    texts: dict[str, Columns]
    timed: Sequence[Prompt]
    """the prompts of ``clock``"""
    clock: dict[str, Columns]
    baseline: str = LARGE


def summarize(measured: Measured, key: str, label: str) -> dict:
    """One row of the table; a number that does not apply is None."""
    kind, own, clock = measured.methods[key].kind, measured.texts[key], measured.clock[key]
    families = sorted({p.family for p in measured.prompts})
    return {
        **{"key": key, "label": label, "role": kind.role, "lossless": kind.lossless},
        **_speed(measured, key),
        **_quality(measured, key),
        "large_share": _large_share(kind.role, own),
        **estimate("accepted", lambda rows: _accepted(kind.role, own, rows), len(own["tokens"]), DRAWS),
        "verified": _ratio(own, "verified", "target_calls") if kind.role == "draft" else None,
        "calls_per_token": _ratio(own, "target_calls", "tokens"),
        "joules_per_token": _ratio(clock, "joules", "tokens") if "joules" in clock else None,
        "families": {family: _family(measured, key, family) for family in families},
    }


def speed_ratio(measured: Measured, key: str, other: str, rows=slice(None)) -> float:
    """Speed of ``key`` relative to ``other``: seconds per token, of sums over the same prompts."""
    return speedup(measured.clock, key, rows) / speedup(measured.clock, other, rows)


def speed_difference(measured: Measured, key: str, other: str) -> dict:
    """``speed_ratio`` and its interval."""
    return _over_groups("ratio", measured, lambda rows: speed_ratio(measured, key, other, rows))


def _over_groups(name: str, measured: Measured, statistic: Callable[[np.ndarray], float]) -> dict:
    """The ``statistic`` of the timed prompts, and its interval over the groups that were timed together."""
    groups = groups_of(measured.clock[LARGE])
    return estimate(name, lambda some: statistic(np.concatenate([groups[i] for i in some])), len(groups), DRAWS)


def loss_difference(measured: Measured, key: str, other: str) -> dict:
    """Mean guarded regret of ``key`` minus that of ``other``, paired by prompt, and its interval."""
    values = measured.texts[key]["loss"] - measured.texts[other]["loss"]
    return estimate("difference", lambda rows: values[rows].mean(), len(values), DRAWS)


def _speed(measured: Measured, key: str) -> dict:
    own, large = measured.clock[key], measured.clock[LARGE]
    return {
        "tokens_per_second": _ratio(own, "tokens", "seconds"),
        **_over_groups("speedup", measured, lambda rows: speedup(measured.clock, key, rows)),
        "total_time_ratio": float(own["seconds"].sum() / large["seconds"].sum()),
    }


def _quality(measured: Measured, key: str) -> dict:
    own, large = measured.texts[key], measured.texts[LARGE]
    span = measured.texts["small"]["loss"].mean() if "small" in measured.texts else 0.0
    return {
        **_mean("loss", own["loss"], DRAWS),
        **loss_difference(measured, key, measured.baseline),
        "recovered": float(1 - own["loss"].mean() / span) if span > 0 else None,
        "same_text": float(own["same"].mean()),
        "plain_regret": float(own["regret"].mean()),
        "perplexity": float(np.exp(_ratio(own, "nll", "tokens"))),
        "length_ratio": float(own["tokens"].sum() / large["tokens"].sum()),
        "at_cap": float(own["capped"].mean()),
        **_score(own["score"]),
        **_score_difference(own["score"], large["score"]),
    }


def _score_difference(scores: np.ndarray, others: np.ndarray) -> dict:
    """The score minus the large model's, paired by prompt."""
    values = (scores - others)[~np.isnan(scores)]
    if not len(values):
        return {"score_difference": None, "score_difference_interval": None}
    return _mean("score_difference", values, DRAWS)


def _score(scores: np.ndarray) -> dict:
    """Mean score of the prompts that have a grader."""
    known = scores[~np.isnan(scores)]
    found = _mean("score", known, DRAWS) if len(known) else {"score": None, "score_interval": None}
    return found | {"graded": len(known)}


def _family(measured: Measured, key: str, family: str) -> dict:
    """The same for one family; speed only where one of its prompts was timed."""
    here, timed = (np.flatnonzero([p.family == family for p in some]) for some in (measured.prompts, measured.timed))
    own = {name: values[here] for name, values in measured.texts[key].items()}
    row = {"prompts": len(here), "timed": len(timed), **_mean("loss", own["loss"], FAMILY_DRAWS)}
    row |= _score(own["score"])
    if len(timed):
        row |= estimate("speedup", lambda rows: speedup(measured.clock, key, timed[rows]), len(timed), FAMILY_DRAWS)
    return row


def _mean(name: str, values: np.ndarray, draws: int) -> dict:
    return estimate(name, lambda rows: values[rows].mean(), len(values), draws)


def _large_share(role: str, own: Columns) -> float | None:
    """Share of the tokens that the large model wrote; None for drafts and beams, whose every token it reads."""
    if role in ("draft", "beam"):
        return None
    return 1.0 if role == LARGE else float(own["last_model"].sum() / own["tokens"].sum())


def _accepted(role: str, own: Columns, rows) -> float | None:
    """Accepted draft tokens a round."""
    if role != "draft":
        return None
    return float((own["tokens"] - own["last_model"])[rows].sum() / own["target_calls"][rows].sum())


def _ratio(columns: Columns, above: str, below: str) -> float:
    return float(columns[above].sum() / columns[below].sum())
