"""The frontier of a result as a PNG, and the look of every PNG."""

from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from policies.storage import atomic
from train.reports.plane import COLOURS, FAINT, FORMATS, GRID, INK, axis_titles, bars, curves, measured, plane
from train.reports.tables import format_number

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


def draw(result: dict[str, Any], path: Path | str) -> None:
    """Measured methods as points with intervals, predictions as dashed lines, the goal as a dotted one."""
    picture = Figure(figsize=(9, 5.7), dpi=200, facecolor="white")
    axes = picture.add_axes((0.088, 0.31, 0.887, 0.57))
    _goal(axes, result.get("goal", {}))
    for name, colour, points in curves(result):
        axes.plot(*zip(*points, strict=True), "--", color=colour, lw=1.6, label=name)
    for method in measured(result.get("methods", []), plane(result)):
        _point(axes, method, plane(result))
    scales(axes, result)
    _words(axes, result)
    save(picture, path)


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
    style |= {"marker": MARKERS.get(method["key"], "o"), "ms": 12 if tuned else 9, "mec": "white", "ls": ""}
    axes.plot(x, y, label=f"{method['label']}:  {values}", **style)


def _words(axes: Axes, result: dict[str, Any]) -> None:
    """The titles, and below the plot what every mark is: points that nearly coincide leave no room for labels."""
    prompts = result.get("splits", {}).get("holdout", {}).get("prompts")
    below = f"points: measured on {prompts} held-out prompts, 95 % intervals" if prompts else "points: measured"
    below += f" (speeds: {result['timed']} of them)" if result.get("timed") else ""
    below += "  ·  dashed: predicted from the tuning prompts" if curves(result) else ""
    title = {"fontsize": 14, "color": INK, "weight": "bold", "parse_math": False}
    axes.figure.text(0.026, 0.945, str(result.get("name", "frontier"))[:75], **title)
    axes.figure.text(0.026, 0.905, below, fontsize=9, color=FAINT)
    legend(axes)


def scales(axes: Axes, result: dict[str, Any]) -> None:
    """Axes of the result's plane; across, speedup is logarithmic when it spans more than a factor of four."""
    axes.margins(0.06, 0.1)
    (low, high), keys = axes.dataLim.intervalx, plane(result)
    if keys[0] == "speedup" and high > 4 * low > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    if keys[0] == "length":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for key, axis in zip(keys, (axes.xaxis, axes.yaxis), strict=True):
        if key == "speedup":
            axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    dress(axes)
    for put, title in zip((axes.set_xlabel, axes.set_ylabel), axis_titles(result), strict=True):
        put(title, color=INK, fontsize=10.5, parse_math=False)


def dress(axes: Axes, grid: str = "both", size: float = 9.5) -> None:
    """A faint grid behind the data (along "x", "y" or "both"), tick labels of ``size``, no frame but the lower line."""
    axes.grid(color=GRID, lw=0.8, axis=grid)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=FAINT, length=0, labelsize=size)


def legend(axes: Axes, columns: int = 2) -> None:
    """The legend of ``axes``, below all plots of their picture; labels are taken literally."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        style = {"loc": "lower left", "bbox_to_anchor": (0.012, 0.01), "frameon": False, "fontsize": 9}
        shown = axes.figure.legend(handles, labels, ncols=columns, labelcolor=INK, **style)
        for text in shown.get_texts():
            text.set_parse_math(False)


def save(picture: Figure, path: Path | str) -> None:
    """Write the picture as a PNG, whole or not at all."""
    png = BytesIO()
    FigureCanvasAgg(picture).print_png(png)
    atomic.write(path, png.getvalue())
