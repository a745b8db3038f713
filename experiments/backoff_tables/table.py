"""The rows of the Backoff Decoding experiment, one for each method and rate, and their table."""

from collections.abc import Callable, Sequence

import numpy as np

from experiments.shared.estimates import estimate
from train.common.progress import say
from train.evaluation.live import LARGE, speedup
from train.reports.tables import format_number, with_interval
from train.reports.terminal import print_rows

Columns = dict[str, np.ndarray]
TITLES = {  # key in a row: title, format; narrow enough for 80 columns, all else is in result.json
    "rate": ("rate", ".1f"),
    "large_share": ("large", ".2f"),
    "loss": ("loss", ".3f"),
    "difference": ("minus random, same share", "+.3f"),
    "speedup": ("speed", ".2f"),
    "decision_share": ("cost", ".3f"),
    "mean_run": ("run", ".1f"),
    "length_ratio": ("length", ".2f"),
}


def summarize(measured: dict[str, Columns], key: str, chance: Sequence[Columns]) -> dict:
    """One row; intervals are 95 % bootstrap over prompts.

    ``chance``: random hand-off at several rates, the small model alone and the large one; losses in between are
    interpolated, on each draw of prompts. ``mean_run``: consecutive tokens without the large model.
    """
    own, large = measured[key], measured[LARGE]
    n = len(own["loss"])
    small = own["tokens"].sum() - own["large"].sum()
    return {
        "large_share": large_share(own),
        **estimate("loss", lambda rows: own["loss"][rows].mean(), n),
        "plain_regret": float(own["regret"].mean()),
        **estimate("speedup", lambda rows: speedup(measured, key, rows), n),
        "mean_run": float(small / own["runs"].sum()) if small else 0.0,
        "length_ratio": float(own["tokens"].sum() / large["tokens"].sum()),
        **against_chance("difference", own, chance, large_share),
        **against_chance("difference_at_speed", own, chance, seconds_per_token),
    }


def large_share(one: Columns, rows=slice(None)) -> float:
    return float(one["large"][rows].sum() / one["tokens"][rows].sum())


def seconds_per_token(one: Columns, rows=slice(None)) -> float:
    return float(one["seconds"][rows].sum() / one["tokens"][rows].sum())


def against_chance(name: str, own: Columns, chance: Sequence[Columns], at: Callable) -> dict:
    """Loss minus that of random hand-off at the same ``at(columns, rows)``, paired; None beyond the rates of chance.

    Between two rates, chance is a mixture of prompts, whose shares and seconds per token are averages.
    """

    def difference(rows) -> float:
        known = sorted((at(one, rows), one["loss"][rows].mean()) for one in chance)
        return float(own["loss"][rows].mean() - np.interp(at(own, rows), *zip(*known, strict=True)))

    reached = [at(one) for one in chance]
    within = min(reached) <= at(own) <= max(reached)
    return estimate(name, difference, len(own["loss"])) if within else {name: None}


def show(result: dict) -> None:
    """The rows on the console: ``large`` is the share of the large model's tokens, ``loss`` the guarded regret,
    ``speed`` the priced speedup, ``cost`` a decision's share of a small token, ``run`` tokens between large ones.
    """
    rows = []
    for row in result["methods"]:
        shown = {key: format_number(row.get(key), form) for key, (_, form) in TITLES.items()}
        shown["difference"] = with_interval(row.get("difference"), row.get("difference_interval"), "+.3f")
        rows.append((row["key"], *shown.values()))
    print_rows(("method", *(title for title, _ in TITLES.values())), rows)
    for note in result["notes"]:
        say(note)
