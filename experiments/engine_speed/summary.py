"""Figures of each method from rows of measurements, and their table."""

from collections.abc import Sequence

import numpy as np

from train.common.progress import say
from train.evaluation.live import bootstrap
from train.reports.tables import with_interval
from train.reports.terminal import print_rows

BASES = ("transformers", "autoregressive")
"""Methods with which all others are compared, where they were measured; texts only with the first."""


def summarize(rows: Sequence[dict], batch: int, methods: Sequence[str], head: dict) -> dict:
    """``cost_ratio`` and the figures of each method, from the rows of one batch size; None where there is no figure."""
    rows = [row for row in rows if row["batch"] == batch]
    methods = [method for method in methods if method in rows[0]["methods"]]
    cost = float(np.median([row["cost"]["small"] / row["cost"]["large"] for row in rows]))
    times = {method: seconds_per_token(rows, method) for method in methods}
    figures = {method: _figures(rows, method, times, head, batch) for method in methods}
    base = figures.get("autoregressive", {}).get("ms_per_token")
    for row in figures.values():
        row["limit"] = handoff_limit(row["share"], cost) if batch == 1 else None
        known = row["limit"] is not None and base is not None
        row["of_limit"] = base / row["ms_per_token"] / row["limit"] if known else None
    groups = len(set(_groups(rows)))
    return {"cost_ratio": cost, "groups": groups, "best": fastest_settings(figures), "methods": figures}


def handoff_limit(share: float | None, cost: float) -> float | None:
    """Speedup of hand-off that takes no time outside of forwards: a small one for each token, a large one for some."""
    return None if share is None else 1 / (cost + share)


def seconds_per_token(rows: Sequence[dict], method: str) -> np.ndarray:
    """Seconds per token [groups], of each group of prompts the median over repeats."""
    groups = _groups(rows)
    seconds = np.array([row["methods"][method]["seconds"] / row["methods"][method]["tokens"] for row in rows])
    return np.array([np.median(seconds[[g == group for g in groups]]) for group in dict.fromkeys(groups)])


def fastest_settings(figures: dict[str, dict]) -> dict[str, str]:
    """The fastest setting of each method that was measured at several."""
    families = {}
    for method in sorted(figures, key=lambda name: figures[name]["ms_per_token"]):
        families.setdefault(method.partition(":")[0], []).append(method)
    # A rate of hand-off is not chosen by speed alone.
    return {family: some[0] for family, some in families.items() if len(some) > 1 and family != "backoff"}


def _groups(rows: Sequence[dict]) -> list[tuple]:
    return [tuple(row["prompts"]) for row in rows]


def _figures(rows: Sequence[dict], method: str, times: dict[str, np.ndarray], head: dict, batch: int) -> dict:
    measured, own = [row["methods"][method] for row in rows], times[method]
    of = lambda name: [m[name] for m in measured if m[name] is not None]  # noqa: E731
    tokens, joules, share = sum(of("tokens")), of("joules"), of("share")
    floor = head["weight_bytes"][method] / head["copy_bytes_per_second"] / batch
    overhead = [m["seconds"] / m["bare"] for m in measured if m["bare"] is not None]
    return {
        "ms_per_token": float(np.median(own) * 1e3),
        "tokens_per_second": float(1 / np.median(own)),
        "ratios": {base: paired_ratio(times[base], own) for base in BASES if base in times and base != method},
        "equal": count_equal(rows, method),
        "overhead": float(np.median(overhead)) if overhead else None,
        "bandwidth_percent": float(100 * floor / np.median(own)),
        "share": float(np.mean(share)) if share else None,
        "peak_bytes": max(of("peak_bytes"), default=None),
        "joules_per_token": sum(joules) / tokens if len(joules) == len(measured) else None,
    }


def paired_ratio(base: np.ndarray, own: np.ndarray) -> dict:
    """Speed relative to ``base``: the median of paired ratios over groups, and its interval if there are several."""
    pairs = base / own
    spread = bootstrap(lambda drawn: np.median(pairs[drawn]), len(pairs)) if len(pairs) > 1 else None
    return {"median": float(np.median(pairs)), "interval": spread}


def count_equal(rows: Sequence[dict], method: str) -> list[int]:
    """[texts that were equal in every repeat, texts]."""
    least = {}
    for group, row in zip(_groups(rows), rows, strict=True):
        least[group] = min(least.get(group, len(group)), row["methods"][method]["equal"])
    return [sum(least.values()), sum(map(len, least))]


COLUMNS = {
    "ms/token": lambda row: f"{row['ms_per_token']:.2f}",
    "tokens/s": lambda row: f"{row['tokens_per_second']:.1f}",
    **{f"x {base}": lambda row, base=base: shown_ratio(row["ratios"].get(base)) for base in BASES},
    "same text": lambda row: "{}/{}".format(*row["equal"]),
    "overhead": lambda row: _number(row["overhead"], ".2f"),
    "% of bandwidth": lambda row: f"{row['bandwidth_percent']:.0f}",
    "limit": lambda row: _number(row["limit"], ".2f"),
    "of limit": lambda row: _number(row["of_limit"], ".0%"),
    "peak GiB": lambda row: "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.2f}",
    "J/token": lambda row: _number(row["joules_per_token"], ".3g"),
}
"""Titles and texts of the columns; a column without any text is left out."""


def show(result: dict) -> None:
    """Print a table for each batch size, with the fastest setting of each method marked."""
    for batch, found in result["batches"].items():
        cells = {title: [column(row) for row in found["methods"].values()] for title, column in COLUMNS.items()}
        cells = {title: column for title, column in cells.items() if any(column)}
        chosen = set(found["best"].values())
        names = [f"{method} *" if method in chosen else method for method in found["methods"]]
        title = f"batch {batch}: {found['groups']} groups of prompts"
        print_rows(("method", *cells), list(zip(names, *cells.values(), strict=True)), title)
    first = next(iter(result["batches"].values()))
    bandwidth = result["copy_bytes_per_second"] / 1e9
    say(
        "* the fastest setting of its method; overhead: wall time / bare forwards; memory copies, read and written, "
        f"{bandwidth:.1f} GB/s; one token costs the small model {first['cost_ratio']:.3f} of the large one"
    )


def shown_ratio(value: dict | None) -> str:
    return "" if value is None else with_interval(value["median"], value["interval"], ".2f")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
