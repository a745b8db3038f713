"""The figures of the Backoff Decoding experiment: one row per method and rate, with its difference to chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from train.live import LARGE, bootstrap, speedup
from train.tables import format_number, with_interval

Columns = dict[str, np.ndarray]
TITLES = {  # key in a row: title, format; `key`_interval is shown where there is one
    "rate": ("rate", ".2f"),
    "large_share": ("by large", ".2f"),
    "loss": ("guarded regret", ".3f"),
    "difference": ("minus random, same share", "+.3f"),
    "difference_at_speed": ("same speed", "+.3f"),
    "speedup": ("priced speedup", ".2f"),
    "decision_share": ("decision / token", ".3f"),
    "mean_run": ("mean run", ".1f"),
    "length_ratio": ("length ratio", ".2f"),
}


def summary(measured: dict[str, Columns], key: str, chance: Sequence[Columns]) -> dict:
    """One row; intervals are 95 % bootstrap over prompts.

    ``chance``: random hand-off at some rates, the small model alone and the large one, between which its loss is
    interpolated, drawn anew with the prompts. ``mean_run``: tokens in a row without the large model.
    """
    own, large = measured[key], measured[LARGE]
    n = len(own["loss"])
    small = own["tokens"].sum() - own["large"].sum()
    row = {
        "large_share": large_share(own),
        "loss": float(own["loss"].mean()),
        "loss_interval": bootstrap(lambda rows: own["loss"][rows].mean(), n),
        "plain_regret": float(own["regret"].mean()),
        "speedup": speedup(measured, key),
        "speedup_interval": bootstrap(lambda rows: speedup(measured, key, rows), n),
        "mean_run": float(small / own["runs"].sum()) if small else 0.0,
        "length_ratio": float(own["tokens"].sum() / large["tokens"].sum()),
    }
    for name, at in {"difference": large_share, "difference_at_speed": seconds_per_token}.items():
        row |= against_chance(name, own, chance, at)
    return row


def large_share(one: Columns, rows=slice(None)) -> float:
    return float(one["large"][rows].sum() / one["tokens"][rows].sum())


def seconds_per_token(one: Columns, rows=slice(None)) -> float:
    return float(one["seconds"][rows].sum() / one["tokens"][rows].sum())


def against_chance(name: str, own: Columns, chance: Sequence[Columns], at: Callable) -> dict:
    """Loss minus that of random hand-off at the same ``at(columns, rows)``, paired; None where chance does not reach.

    Between two rates chance is a mixture of prompts, of which shares and seconds per token are the average.
    """

    def difference(rows) -> float:
        known = sorted((at(one, rows), one["loss"][rows].mean()) for one in chance)
        return float(own["loss"][rows].mean() - np.interp(at(own, rows), *zip(*known, strict=True)))

    reached = [at(one) for one in chance]
    if not min(reached) <= at(own) <= max(reached):
        return {name: None}
    n = len(own["loss"])
    return {name: difference(np.arange(n)), f"{name}_interval": bootstrap(difference, n)}


def show(result: dict, console: Console) -> None:
    """The rows on the console."""
    table = Table("method", *(title for title, _ in TITLES.values()))
    for row in result["methods"]:
        cells = [
            with_interval(row.get(key), row.get(f"{key}_interval"), form)
            if f"{key}_interval" in row
            else format_number(row.get(key), form)
            for key, (_, form) in TITLES.items()
        ]
        table.add_row(row["label"], *cells)
    console.print(table)
    for note in result["notes"]:
        console.print(note)
