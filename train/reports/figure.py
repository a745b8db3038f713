"""The frontier of a result as a PNG: loss against speedup, or where nothing is lost, speedup against draft length."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from train.common import atomic
from train.reports.tables import axis_titles, bars, format_number, label, measured, plane

INK, FAINT, GRID = "#1f2430", "#6b7280", "#e7e9ee"
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
MARKERS = {
    "large": "s",
    "speculative": "D",
    "random_low": "<",
    "random_high": ">",
    "mtad": "^",
    "mmtad": "p",
    "bild": "v",
    "leniency": "P",
    "stop": "X",
    "tree": "*",
}
CURVES = {
    "policy": ("policy, any threshold", "tuned"),
    "random": ("random hand-off, any rate", "random_low"),
    "front": ("best of all candidates", "front"),
    "stop": ("tuned stop, any longest draft", "tuned"),
    "constant": ("constant length", "speculative"),
}
"""what a reader calls a predicted curve, and the points that it predicts"""
FORMATS = {"speedup": (".2f", "×"), "loss": (".3f", ""), "length": ("g", " tokens")}


def draw(result: dict[str, Any], path: Path | str) -> None:
    """Measured methods as points with intervals, predictions as dashed lines, the goal as a dotted one."""
    picture = Figure(figsize=(9, 5.7), dpi=200, facecolor="white")
    canvas = FigureCanvasAgg(picture)
    axes = picture.add_axes((0.088, 0.31, 0.887, 0.57))
    _goal(axes, result.get("goal", {}))
    for name, points in curves(result).items():
        axes.plot(*zip(*points, strict=True), "--", color=curve_colour(name), lw=1.6, label=curve_name(name))
    for method in measured(result.get("methods", []), plane(result)):
        _point(axes, method, plane(result))
    scales(axes, result)
    _words(axes, result)
    png = BytesIO()
    canvas.print_png(png)
    atomic.write(path, png.getvalue())


def curves(result: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """The predicted curves that have points, each a list of points in the ``plane`` of the result."""
    return {name: points for name, points in result.get("frontier", {}).items() if points}


def curve_name(name: str) -> str:
    """What a reader calls the curve."""
    return f"{CURVES.get(name, (name,))[0]} (predicted)"


def curve_colour(name: str) -> str:
    """The colour of the points that the curve predicts."""
    return COLOURS.get(CURVES.get(name, (name, name))[1], INK)


def _goal(axes: Axes, goal: dict[str, float]) -> None:
    """The line that the search had to reach."""
    style = {"color": INK, "lw": 1.0, "ls": (0, (1, 2))}
    if "target_speedup" in goal:
        axes.axvline(goal["target_speedup"], label=f"target {goal['target_speedup']:g}×", **style)
    if "quality_budget" in goal:
        axes.axhline(goal["quality_budget"], label=f"budget {goal['quality_budget']:g}", **style)


def _point(axes: Axes, method: dict[str, Any], keys: tuple[str, str]) -> None:
    tuned = method["key"] == "tuned"
    x, y = (method[key] for key in keys)
    across, up = ([[bar] for bar in bars(method, key)] for key in keys)
    values = ", ".join(format_number(method[key], FORMATS[key][0]) + FORMATS[key][1] for key in keys)
    style = {"color": COLOURS.get(method["key"], INK), "zorder": 5 if tuned else 4}
    axes.errorbar(x, y, up, across, fmt="none", elinewidth=1.6, **style)
    axes.plot(
        x,
        y,
        MARKERS.get(method["key"], "o"),
        ms=12 if tuned else 9,
        mec="white",
        label=f"{label(method)}:  {values}",
        **style,
    )


def scales(axes: Axes, result: dict[str, Any]) -> None:
    """Axes of the result's plane; across, speedup is logarithmic when it spans more than a factor of four."""
    axes.margins(0.06, 0.1)
    (low, high), keys = axes.dataLim.intervalx, plane(result)
    if keys[0] == "speedup" and high > 4 * low > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    for key, axis in zip(keys, (axes.xaxis, axes.yaxis), strict=True):
        if key == "speedup":
            axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.grid(color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=FAINT, length=0, labelsize=9.5)
    for put, title in zip((axes.set_xlabel, axes.set_ylabel), axis_titles(result), strict=True):
        put(title, color=INK, fontsize=10.5, parse_math=False)


def _words(axes: Axes, result: dict[str, Any]) -> None:
    """The titles, and below the plot what every mark is: points that nearly coincide leave no room for labels."""
    prompts = result.get("splits", {}).get("holdout", {}).get("prompts")
    below = f"points: measured on {prompts} hold-out prompts, with intervals" if prompts else "points: measured"
    below += "  ·  dashes: predicted on the tuning prompts" if curves(result) else ""
    title = {"fontsize": 14, "color": INK, "weight": "bold", "parse_math": False}
    axes.figure.text(0.026, 0.945, str(result.get("name", "frontier"))[:75], **title)
    axes.figure.text(0.026, 0.905, below, fontsize=9, color=FAINT)
    legend(axes)


def legend(axes: Axes) -> None:
    """Below the plot, in two columns; labels are taken literally."""
    if axes.get_legend_handles_labels()[1]:
        shown = axes.figure.legend(
            loc="lower left", bbox_to_anchor=(0.012, 0.01), ncols=2, frameon=False, fontsize=9, labelcolor=INK
        )
        for text in shown.get_texts():
            text.set_parse_math(False)
