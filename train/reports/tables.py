"""The methods of a result as cells of text, and as a Markdown table.

A column without a number is left out; a number that is missing, null or not finite is a dash.
"""

import math
from collections.abc import Sequence
from typing import Any

from decoding.cli.terminal import visible

DASH = "–"
COLUMNS = {  # key in a method: title (None: the name of the loss), format; `key`_interval is shown where there is one
    "tokens_per_second": ("tokens/s", ".1f"),
    "speedup": ("speedup", ".2f"),
    "loss": (None, ".3f"),
    "recovered": ("gap recovered", ".0%"),
    "large_share": ("by large model", ".0%"),
    "length_ratio": ("length ratio", ".2f"),
    "total_time_ratio": ("time ratio", ".2f"),
    "at_cap": ("at length cap", ".0%"),
}
SCORED = {
    "score": ("score", ".3f"),
    "score_difference": ("minus large", "+.3f"),
    "at_cap": COLUMNS["at_cap"],
    "tokens_per_second": COLUMNS["tokens_per_second"],
    "speedup": COLUMNS["speedup"],
    "guarded": ("guarded regret", ".3f"),
    **{key: COLUMNS[key] for key in ("large_share", "length_ratio", "total_time_ratio")},
}
"""The columns of a result with a grader: what is lost of the score is its loss, with the sign turned."""


def table(result: dict[str, Any]) -> str:
    """The methods as a Markdown table."""
    return markdown(cells(result))


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Lines of text, the titles first, as a Markdown table with aligned columns; all but the first to the right."""
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def columns_of(result: dict[str, Any]) -> dict[str, tuple[str | None, str]]:
    """The columns of a result's methods: a score, where they have one, comes first."""
    return SCORED if any(number(method.get("score")) is not None for method in result.get("methods", [])) else COLUMNS


def cells(result: dict[str, Any], columns: dict | None = None) -> list[list[str]]:
    """The table's text: the titles, then one row for each method."""
    methods, columns = result.get("methods", []), columns_of(result) if columns is None else columns
    keys = [key for key in columns if any(number(method.get(key)) is not None for method in methods)]
    titles = ["method", *(columns[key][0] or loss_name(result) for key in keys)]
    rows = [
        [visible(m["label"]), *(with_interval(m.get(key), m.get(f"{key}_interval"), columns[key][1]) for key in keys)]
        for m in methods
    ]
    return [titles, *rows]


def loss_name(result: dict[str, Any]) -> str:
    """The name of the loss: that of a grader has another."""
    return visible(str(result.get("loss_name", "guarded regret")))


def thought_line(result: dict[str, Any]) -> str | None:
    """How much of the large model's answers is thought; None where it does not think."""
    found = result.get("thought")
    if not found:
        return None
    line = f"{format_number(found['share'], '.0%')} of what the large model wrote is thought (<think>...</think>)"
    if not found["unfinished"]:
        return f"{line}."
    return f"{line}; {found['unfinished']} of {found['answers']} answers end within it: raise --max-new-tokens."


def grading_line(result: dict[str, Any]) -> str | None:
    """How well guarded regret predicts the score, and at what the grader failed; None without a grader."""
    found = result.get("grading")
    if not found:
        return None
    methods, texts = (format_number(found[key], ".2f") for key in ("over_methods", "over_texts"))
    line = (
        f"Rank correlation of guarded regret, by which policies are fitted, with what is lost of the score: {methods} "
        f"over {found['methods']} methods, {texts} over {found['texts']} texts."
    )
    if found["failed"]:
        line += f" The grader failed at texts of {found['failed']} prompts, which score 0."
    return line


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
    shown, ends = format_number(value, form), ends_of(interval)
    if ends is None or ends[0] == ends[1] == value:
        return shown
    return f"{shown} [{format_number(ends[0], form)}, {format_number(ends[1], form)}]"


def ends_of(interval: Sequence[Any] | None) -> Sequence[float] | None:
    """Both ends of an interval; None unless both are finite."""
    ends = [number(end) for end in interval or ()]
    return None if None in ends or len(ends) != 2 else ends
