"""The axes, colours and points that the pictures of a result share."""

from collections.abc import Sequence
from typing import Any

from train.reports.tables import ends_of, loss_name, number

INK, FAINT, GRID, PAPER = "#1f2430", "#6b7280", "#e7e9ee", "#ffffff"
DARK = {INK: "#e6e8ec", FAINT: "#a0a6b2", GRID: "#363c48", PAPER: "#16191f"}
"""What a page draws in their place where the reader's screen is dark."""
COLOURS = {  # Okabe and Ito: told apart by colour-blind readers too; the small and the large model's also colour tokens
    "large": "#0072b2",
    "small": "#d55e00",
    "tuned": "#009e73",
    "random_low": "#737985",
    "random_high": "#737985",
    "speculative": "#9a4f86",
    "tree": "#9a4f86",
    "llamacpp": "#8c6510",
}
CURVES = {
    "policy": ("tuned policy at any threshold", "tuned"),
    "random": ("random hand-off at any rate", "random_low"),
    "front": ("best of all candidates", "front"),
    "stop": ("tuned stop, any longest draft", "tuned"),
    "constant": ("constant length", "speculative"),
}
"""Predicted curves: name for the reader, and the key of the method of the same colour."""
AXES = {
    "speedup": "speedup over the large model alone",
    "loss": "{} (lower is better)",
    "score": "task score (higher is better)",
    "length": "longest draft, tokens",
}
FORMATS = {  # format and unit of a value
    "speedup": (".2f", "×"),
    "loss": (".3f", ""),
    "score": (".3f", ""),
    "length": ("g", " tokens"),
}


def plane(result: dict[str, Any]) -> tuple[str, str]:
    """The keys that a picture of the result shows, across and up."""
    across, up = result.get("plane", ("speedup", "loss"))
    return across, up


def axis_titles(result: dict[str, Any]) -> list[str]:
    """The names of the two keys of ``plane``."""
    return [AXES[key].format(loss_name(result)) for key in plane(result)]


def measured(methods: Sequence[dict[str, Any]], keys: Sequence[str] = ("speedup", "loss")) -> list[dict[str, Any]]:
    """The methods, or trials, that have all ``keys``: the points of a picture."""
    return [m for m in methods if None not in (number(m.get(key)) for key in keys)]


def bars(method: dict[str, Any], key: str) -> tuple[float, float]:
    """Lengths of an interval's parts below and above its point; never negative, zero where there is no interval."""
    low, high = ends_of(method.get(f"{key}_interval")) or (method[key], method[key])
    return max(0.0, method[key] - low), max(0.0, high - method[key])


def curves(result: dict[str, Any]) -> list[tuple[str, str, list[tuple[float, float]]]]:
    """(name for the reader, colour, points) of each predicted curve that has points."""
    found = [(*CURVES.get(name, (name, name)), points) for name, points in result.get("frontier", {}).items()]
    return [(f"{title} (predicted)", COLOURS.get(key, INK), points) for title, key, points in found if points]
