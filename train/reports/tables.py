"""The methods of a result as a table: Markdown, or for the terminal.

A column without a number is left out; a number that is missing, null or not finite is a dash.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

DASH = "–"
COLUMNS = {  # key in a method: title (None: the name of the loss), format; `key`_interval is shown where there is one
    "tokens_per_second": ("tokens/s", ".1f"),
    "speedup": ("speedup", ".2f"),
    "loss": (None, ".3f"),
    "recovered": ("gap recovered", ".0%"),
    "large_share": ("by large model", ".0%"),
    "length_ratio": ("length ratio", ".2f"),
    "total_time_ratio": ("time ratio", ".2f"),
}


def table(result: dict[str, Any]) -> str:
    """The methods as a Markdown table with aligned columns."""
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in cells(result)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def print_table(result: dict[str, Any], console: Console, columns: dict = COLUMNS) -> None:
    """The methods as a rich table, the tuned policy in bold."""
    titles, *rows = cells(result, columns)
    shown = Table(title=Text(result["name"]) if result.get("name") else None, title_justify="left")
    for i, title in enumerate(titles):
        # Names of methods may differ only at their ends.
        shown.add_column(Text(title), justify="left" if i == 0 else "right", overflow="fold")
    for method, row in zip(result.get("methods", []), rows, strict=True):
        shown.add_row(*map(Text, row), style="bold" if method["key"] == "tuned" else None)
    console.print(shown)


def cells(result: dict[str, Any], columns: dict = COLUMNS) -> list[list[str]]:
    """The table's text: the titles, then one row for each method."""
    methods = result.get("methods", [])
    keys = [key for key in columns if any(number(method.get(key)) is not None for method in methods)]
    titles = ["method", *(columns[key][0] or loss_name(result) for key in keys)]
    rows = [
        [label(m), *(with_interval(m.get(key), m.get(f"{key}_interval"), columns[key][1]) for key in keys)]
        for m in methods
    ]
    return [titles, *rows]


def plane(result: dict[str, Any]) -> tuple[str, str]:
    """What the pictures of a result show, across and up: what is lost, or where nothing is, how long the drafts are."""
    return ("length", "speedup") if result.get("method") == "speculative" else ("speedup", "loss")


def measured(methods: list[dict[str, Any]], keys: Sequence[str] = ("speedup", "loss")) -> list[dict[str, Any]]:
    """The methods, or trials, that have all ``keys``: the points of a plot."""
    return [m for m in methods if None not in (number(m.get(key)) for key in keys)]


def axis_titles(result: dict[str, Any]) -> list[str]:
    """The names of what ``plane`` says."""
    names = {
        "speedup": "speedup over the large model alone",
        "loss": f"{loss_name(result)} (lower is better)",
        "length": "longest draft, tokens",
    }
    return [names[key] for key in plane(result)]


def bars(method: dict[str, Any], key: str) -> tuple[float, float]:
    """Lengths of an interval's parts below and above its point; never negative, zero where there is no interval."""
    low, high = _ends(method.get(f"{key}_interval")) or (method[key], method[key])
    return max(0.0, method[key] - low), max(0.0, high - method[key])


def label(method: dict[str, Any]) -> str:
    """What a reader calls the method."""
    return str(method.get("label", method["key"]))


def loss_name(result: dict[str, Any]) -> str:
    """What the loss is called: another grader has another name."""
    return str(result.get("loss_name", "guarded regret"))


def number(value: Any) -> float | None:
    """The value if it is a finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def format_number(value: Any, form: str) -> str:
    """The value in that format, without the sign of -0.000; a dash if it is not a finite number."""
    if number(value) is None:
        return DASH
    text = format(float(value), form)
    return text.lstrip("-") if not text.strip("-0.%") else text


def with_interval(value: Any, interval: Sequence[Any] | None, form: str) -> str:
    """`1.31 [1.25, 1.37]`; the bare number where the interval is missing or one point, as for the reference."""
    shown, ends = format_number(value, form), _ends(interval)
    if ends is None or ends[0] == ends[1] == value:
        return shown
    return f"{shown} [{format_number(ends[0], form)}, {format_number(ends[1], form)}]"


def _ends(interval: Sequence[Any] | None) -> Sequence[float] | None:
    ends = [number(end) for end in interval or ()]
    return None if None in ends or len(ends) != 2 else ends
