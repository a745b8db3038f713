"""What a run found, as a table, a picture and one HTML page: pure functions of the dict in runs/NAME/result.json.

A key that is missing leaves out what would have shown it; a number that is missing, null or not finite is a dash.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, NullLocator
from rich.console import Console
from rich.table import Table
from rich.text import Text

INK, FAINT, GRID = "#1f2430", "#6b7280", "#e7e9ee"
COLOURS = {  # Okabe and Ito: told apart by colour-blind readers too; the small and the large model's also colour tokens
    "large": "#0072b2",
    "small": "#d55e00",
    "tuned": "#009e73",
    "random_low": "#737985",
    "random_high": "#737985",
    "speculative": "#9a4f86",
    "llamacpp": "#8c6510",
}
Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels
MIDDLE = ("#9a4f86", "#8c6510", "#009e73")  # writers between the smallest and the largest model
DASH = "–"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; img-src data: blob:"
STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #1f2430; background: #fff }
body { max-width: 1040px; margin: 40px auto; padding: 0 20px }
h1 { font-size: 28px; margin: 0 } h2 { font-size: 20px; margin: 44px 0 8px }
.verdict { font-size: 19px; border-left: 4px solid #009e73; padding: 4px 0 4px 14px; margin: 14px 0 }
.faint { color: #6b7280; font-size: 14px; overflow-wrap: anywhere }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 14.5px; font-variant-numeric: tabular-nums }
th, td { padding: 5px 14px 5px 0; text-align: right; border-bottom: 1px solid #e7e9ee; white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { color: #6b7280; font-weight: 600 }
tr.tuned td { font-weight: 700; color: #00775a } code { font-size: 13px }
.sample { border: 1px solid #e7e9ee; border-radius: 8px; padding: 12px 16px; margin: 12px 0 }
.prompt { color: #6b7280; white-space: pre-wrap; overflow-wrap: anywhere; margin-bottom: 8px }
.text { white-space: pre-wrap; overflow-wrap: anywhere } .text span, .key { border-radius: 3px; padding: 1px 0 }
.key { padding: 1px 6px; margin-right: 6px }
"""


def table(result: dict[str, Any]) -> str:
    """The methods as a Markdown table with aligned columns."""
    columns = _columns(result)
    cells = [[column.title for column in columns], *_rows(result, columns)]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in cells]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(columns))]
    rule = [("-" * w) if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines = [[_pad(cell, w, left=i == 0) for i, (cell, w) in enumerate(zip(row, widths, strict=True))] for row in cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in [lines[0], rule, *lines[1:]])


def print_table(result: dict[str, Any], console: Console) -> None:
    """The methods as a rich table, the tuned policy in bold."""
    columns = _columns(result)
    shown = Table(title=Text(result["name"]) if result.get("name") else None, title_justify="left")
    for i, column in enumerate(columns):
        shown.add_column(Text(column.title), justify="left" if i == 0 else "right")
    for method, row in zip(result.get("methods", []), _rows(result, columns), strict=True):
        shown.add_row(*map(Text, row), style="bold" if method["key"] == "tuned" else None)
    console.print(shown)


@dataclass(frozen=True)
class _Column:
    title: str
    cell: Callable[[dict[str, Any]], str]
    value: Callable[[dict[str, Any]], Any]


def _columns(result: dict[str, Any]) -> list[_Column]:
    """The columns for which at least one method has a number."""
    loss = _loss_name(result)

    def column(title: str, key: str, form: str, interval: str | None = None) -> _Column:
        def cell(method: dict[str, Any]) -> str:
            return _with_interval(method.get(key), method.get(interval) if interval else None, form)

        return _Column(title, cell, lambda method: _number(method.get(key)))

    columns = [
        column("tokens/s", "tokens_per_second", ".1f"),
        column("speedup", "speedup", ".2f", "speedup_interval"),
        column(loss, "loss", ".3f", "loss_interval"),
        column("gap recovered", "recovered", ".0%"),
        column("by large model", "large_share", ".0%"),
        column("length ratio", "length_ratio", ".2f"),
        column("time ratio", "total_time_ratio", ".2f"),
    ]
    methods = result.get("methods", [])
    label = _Column("method", _label, _label)
    return [label, *(c for c in columns if any(c.value(method) is not None for method in methods))]


def _rows(result: dict[str, Any], columns: Sequence[_Column]) -> list[list[str]]:
    return [[column.cell(method) for column in columns] for method in result.get("methods", [])]


def _pad(cell: str, width: int, left: bool) -> str:
    return cell.ljust(width) if left else cell.rjust(width)


def _label(method: dict[str, Any]) -> str:
    return str(method.get("label", method["key"]))


def _loss_name(result: dict[str, Any]) -> str:
    return str(result.get("loss_name", "guarded regret"))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _format(value: Any, form: str) -> str:
    number = _number(value)
    if number is None:
        return DASH
    text = format(number, form)
    return text.lstrip("-") if not text.strip("-0.%") else text  # no -0.000


def _with_interval(value: Any, interval: Sequence[Any] | None, form: str) -> str:
    """`1.31 [1.25, 1.37]`; the bare number where the interval is missing or one point, as for the reference."""
    shown = _format(value, form)
    if not interval or None in map(_number, interval) or (interval[0] == interval[1] == value):
        return shown
    return f"{shown} [{_format(interval[0], form)}, {_format(interval[1], form)}]"


def figure(result: dict[str, Any], path: Path | str) -> None:
    """A PNG of the frontier: measured methods as points with intervals, replayed predictions as dashed lines."""
    picture = Figure(figsize=(9, 5.7), dpi=200, facecolor="white")
    canvas = FigureCanvasAgg(picture)
    axes = picture.add_axes((0.088, 0.115, 0.887, 0.695))
    methods = _measured(result)
    curves = [(name, points) for name, points in result.get("frontier", {}).items() if points]
    _frame(axes, result, methods, curves)
    for name, points in curves:
        axes.plot(*zip(*points, strict=True), "--", color=_curve_colour(name), lw=1.6, alpha=0.8, zorder=2)
    for method in methods:
        _point(axes, method)
    canvas.draw()
    obstacles = _obstacles(axes, methods, curves)
    _target(axes, result, obstacles)
    for method in sorted(methods, key=lambda method: method["key"] != "tuned"):
        text, weight = _label(method), "normal"
        if method["key"] == "tuned":  # the others' numbers are in the table: here they would hide the picture
            text, weight = f"{text}\n{method['speedup']:.2f}×, {_format(method['loss'], '.3f')}", "bold"
        _place(axes, text, [(method["speedup"], method["loss"])], _colour(method["key"]), obstacles, weight=weight)
    for name, points in curves:
        anchors = points[len(points) // 4 :: max(1, len(points) // 8)]
        _place(
            axes, f"{_curve_name(name)} (predicted)", anchors, _curve_colour(name), obstacles, size=8.5, style="italic"
        )
    _atomic(Path(path), lambda temporary: canvas.print_png(str(temporary)))


def _measured(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [m for m in result.get("methods", []) if None not in (_number(m.get("speedup")), _number(m.get("loss")))]


def _colour(key: str) -> str:
    return COLOURS.get(key, INK)


def _curve_colour(name: str) -> str:
    return COLOURS["tuned"] if name == "policy" else COLOURS["random_low"]


def _curve_name(name: str) -> str:
    return {"policy": "policy, any threshold", "random": "random hand-off, any rate"}.get(name, name)


def _frame(axes: Any, result: dict[str, Any], methods: list[dict[str, Any]], curves: list[Any]) -> None:
    """Titles, scales and limits; the speedup axis is logarithmic when it spans more than a factor of four."""
    xs = [x for m in methods for x in (m["speedup"], *_interval(m, "speedup"))] + [p[0] for _, c in curves for p in c]
    ys = [y for m in methods for y in (m["loss"], *_interval(m, "loss"))] + [p[1] for _, c in curves for p in c] + [0.0]
    goal = result.get("goal", {})
    xs += [goal["target_speedup"]] if "target_speedup" in goal else []
    ys += [goal["quality_budget"]] if "quality_budget" in goal else []
    low, high = min(xs, default=0.5), max(xs, default=2.0)
    if low > 0 and high / low > 4:
        axes.set_xscale("log")
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 50, 100) if low / 1.2 < t < high * 1.2]
        axes.set_xticks(ticks)
        axes.xaxis.set_minor_locator(NullLocator())
        margin = (high / low) ** 0.08
        axes.set_xlim(low / margin, high * margin)
    else:
        margin = 0.08 * (high - low) if high > low else 0.5
        axes.set_xlim(low - margin, high + margin)
    tall = max(ys) - min(ys) if max(ys) > min(ys) else 1.0
    axes.set_ylim(min(ys) - 0.15 * tall, max(ys) + 0.12 * tall)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    least = min(ys) - 1e-9  # no tick below every loss: the room there is for labels
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.3g}" if y >= least else ""))
    axes.grid(color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#b6bac4")
    axes.tick_params(colors=FAINT, length=0, labelsize=9.5, pad=6)
    axes.set_xlabel("speedup over the large model alone  (right is faster)", color=INK, fontsize=10.5, labelpad=7)
    axes.set_ylabel(f"{_loss_name(result)}  (lower is better)", color=INK, fontsize=10.5, parse_math=False)
    axes.yaxis.set_label_coords(-0.068, 0.5)
    title, below = _titles(result)
    corner = {"ha": "left", "va": "top", "parse_math": False}
    axes.figure.text(0.022, 0.968, title, fontsize=14, fontweight="bold", color=INK, **corner)
    axes.figure.text(0.022, 0.915, below, fontsize=9, color=FAINT, linespacing=1.45, **corner)


def _titles(result: dict[str, Any]) -> tuple[str, str]:
    tuned = next((method for method in _measured(result) if method["key"] == "tuned"), None)
    title = str(result.get("name", "frontier"))
    if tuned:
        title += f": {tuned['speedup']:.2f}× the speed, {_format(tuned['loss'], '.3f')} {_loss_name(result)}"
    names = [str(model["name"]) for model in result.get("models", []) if model.get("name")]
    prompts = result.get("splits", {}).get("holdout", {}).get("prompts")
    where = result.get("machine", {})
    place = " ".join(str(where[key]) for key in ("cpu", "device", "dtype") if where.get(key))
    points = f"points: measured on {prompts} hold-out prompts, bars are intervals" if prompts else "points: measured"
    dashes = "dashes: replayed on the tuning traces" if any(result.get("frontier", {}).values()) else ""
    below = [_join(" + ".join(names), place), _join(points, dashes)]
    return _short(title, 75), "\n".join(_short(line, 125) for line in below if line)


def _join(*parts: str) -> str:
    return "  ·  ".join(part for part in parts if part)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _interval(method: dict[str, Any], key: str) -> list[float]:
    ends = [_number(end) for end in method.get(f"{key}_interval") or ()]
    return [] if None in ends or len(ends) != 2 else ends


def _errors(method: dict[str, Any], key: str) -> list[list[float]] | None:
    """Lengths of the bars to both sides; an interval need not hold its own point estimate, a bar cannot be negative."""
    ends = _interval(method, key)
    return [[max(0.0, method[key] - ends[0])], [max(0.0, ends[1] - method[key])]] if ends else None


def _point(axes: Any, method: dict[str, Any]) -> None:
    tuned = method["key"] == "tuned"
    axes.errorbar(
        method["speedup"],
        method["loss"],
        xerr=_errors(method, "speedup"),
        yerr=_errors(method, "loss"),
        fmt="o",
        color=_colour(method["key"]),
        ms=11 if tuned else 8,
        mec="white",
        mew=1.4,
        elinewidth=1.6,
        capsize=0,
        zorder=5 if tuned else 4,
        clip_on=False,
    )


def _obstacles(axes: Any, methods: list[dict[str, Any]], curves: list[Any]) -> list[Sequence[Box]]:
    """What a label should not cover, each as boxes in pixels: points with their error bars, curves."""
    see, scale = axes.transData.transform, axes.figure.dpi / 72
    found = []
    for method in methods:
        x, y = method["speedup"], method["loss"]
        across, up = _interval(method, "speedup") or [x, x], _interval(method, "loss") or [y, y]
        bars = [_box(see([(end, y) for end in across]), 2 * scale), _box(see([(x, end) for end in up]), 2 * scale)]
        found.append([*bars, _box(see([(x, y)]), 7 * scale)])
    for _, points in curves:
        at = see(points)
        dense = [a + (b - a) * t / 8 for a, b in pairwise(at) for t in range(8)]
        dense = np.array([*dense, at[-1]])
        found.append(np.hstack([dense - 1.5 * scale, dense + 1.5 * scale]))
    return found


def _box(points: Iterable[Sequence[float]], margin: float) -> Box:
    xs, ys = zip(*points, strict=True)
    return min(xs) - margin, min(ys) - margin, max(xs) + margin, max(ys) + margin


def _overlap(box: Box, others: Sequence[Box]) -> float:
    """Pixels of `box` under the others, which are counted one by one."""
    left, bottom, right, top = np.asarray(others).T
    wide = np.minimum(right, box[2]) - np.maximum(left, box[0])
    high = np.minimum(top, box[3]) - np.maximum(bottom, box[1])
    return float((wide.clip(0) * high.clip(0)).sum())


def _place(
    axes: Any,
    text: str,
    anchors: Sequence[Sequence[float]],
    colour: str,
    obstacles: list[Sequence[Box]],
    size: float = 9.5,
    **font: Any,
) -> None:
    """Write a label near one of its anchors where it covers least of what is already there; the nearer the better."""
    scale = axes.figure.dpi / 72
    label = axes.annotate(text, anchors[0], (0, 0), textcoords="offset points", color=colour, fontsize=size, **font)
    label.set(parse_math=False, linespacing=1.25, zorder=6, path_effects=[withStroke(linewidth=3, foreground="white")])
    extent = label.get_window_extent()
    choices = [
        (_cost(box, axes, obstacles) + 3 * distance * scale, distance, anchor, side, box)
        for anchor in anchors
        for distance, side, box in _boxes(axes.transData.transform(anchor), extent.width, extent.height, scale)
    ]
    _, distance, anchor, side, box = min(choices, key=lambda choice: choice[0])
    x, y = axes.transData.transform(anchor)
    label.xy = anchor
    label.set_position(((box[0] - x) / scale, (box[1] - y) / scale))
    label.set_multialignment("left" if side > 0.3 else "right" if side < -0.3 else "center")
    obstacles.append([(box[0] - 3 * scale, box[1] - 2 * scale, box[2] + 3 * scale, box[3] + 2 * scale)])
    if distance > 20:
        near = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
        axes.plot(*zip(anchor, axes.transData.inverted().transform(near), strict=True), color=colour, lw=0.7, zorder=3)
        obstacles.append([_box([(x, y), near], 0)])


def _boxes(at: Sequence[float], width: float, height: float, scale: float) -> Iterable[tuple[float, float, Box]]:
    """Where a label may go: (distance in points, side -1..1, box in pixels) on rings around a point."""
    for distance in (9, 14, 20, 28, 38, 50, 64):
        for angle in range(0, 360, 15):
            i, j = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            x = at[0] + i * (distance * scale + width / 2) - width / 2
            y = at[1] + j * (distance * scale * 0.8 + height / 2) - height / 2
            yield distance, i, (x, y, x + width, y + height)


def _cost(box: Box, axes: Any, obstacles: list[Sequence[Box]]) -> float:
    """Pixels covered or outside, and much for touching anything at all: a line through a word is unreadable."""
    covered = [_overlap(box, obstacle) for obstacle in obstacles]
    left, bottom, right, top = axes.get_window_extent().extents
    inside = _overlap(box, [(left + 4, bottom + 4, right, top)])
    outside = (box[2] - box[0]) * (box[3] - box[1]) - inside
    return sum(covered) + 600 * sum(pixels > 0 for pixels in covered) + 10 * outside


def _target(axes: Any, result: dict[str, Any], obstacles: list[Sequence[Box]]) -> None:
    """The line that the search had to reach, and its name at the line's end."""
    goal, scale = result.get("goal", {}), axes.figure.dpi / 72
    style = {"color": INK, "lw": 1.0, "ls": (0, (1, 2)), "zorder": 1.5}
    words = {"color": INK, "fontsize": 8.5, "textcoords": "offset points"}
    left, bottom, right, top = axes.get_window_extent().extents
    if "target_speedup" in goal:
        at = goal["target_speedup"]
        axes.axvline(at, **style)
        label = axes.annotate(
            f"target {at:g}×", (at, 1), (0, 4), xycoords=("data", "axes fraction"), ha="center", va="bottom", **words
        )
        x = axes.transData.transform((at, 0))[0]
        obstacles.append([(x - scale, bottom, x + scale, top)])
    elif "quality_budget" in goal:
        at = goal["quality_budget"]
        axes.axhline(at, **style)
        label = axes.annotate(
            f"budget {at:g}", (1, at), (0, 4), xycoords=("axes fraction", "data"), ha="right", va="bottom", **words
        )
        y = axes.transData.transform((1, at))[1]
        obstacles.append([(left, y - scale, right, y + scale)])
    else:
        return
    obstacles.append([tuple(label.get_window_extent().extents)])


def _atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path`, then move it there: a reader sees the old file or the new one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_html(result: dict[str, Any], path: Path | str) -> None:
    """One self-contained page that opens offline; its own content policy forbids the browser to load anything else."""
    name = escape(str(result.get("name", "report")))
    plots = [plot for plot in (_frontier_plot(result), _trials_plot(result)) if plot]
    drawn = {
        plot.layout.meta: plot.to_html(
            full_html=False,
            include_plotlyjs=i == 0,  # once: it is 4.7 MB
            div_id=plot.layout.meta,
            config={"displaylogo": False, "responsive": True},
        )
        for i, plot in enumerate(plots)
    }
    sections = [
        _header(result, name),
        _section("Methods", _methods(result)),
        _section("Frontier", drawn.get("frontier", ""), _replay_note(result)),
        _section("Search", drawn.get("trials", ""), "One point per trial, as predicted on the tuning prompts."),
        _section("Policy", _policy(result)),
        _section("Cost", _costs(result), "Milliseconds of one forward pass, by the number of tokens it reads."),
        _section("Splits", _splits(result), "No group of related prompts is in two splits."),
        _section("Logged, never searched", _plain(result)),
        _section("Models and machine", _models(result)),
        _section("Samples", _samples(result), "Each token in the colour of its writer; point at it to see its risk."),
    ]
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f"<body>{''.join(sections)}</body></html>"
    )
    _atomic(Path(path), lambda temporary: temporary.write_text(page, encoding="utf-8"))


def _section(title: str, body: str, note: str = "") -> str:
    below = f'<p class="faint">{note}</p>' if note else ""
    return f'<section><h2>{title}</h2>{below}<div class="wide">{body}</div></section>' if body else ""


def _grid(head: Sequence[Any], rows: Iterable[Sequence[Any]], classes: Sequence[str] = ()) -> str:
    """An HTML table; every cell is escaped."""
    lines = ["".join(f"<th>{escape(str(cell))}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
    marks = ["", *classes, *[""] * len(lines)]
    return "<table>" + "".join(f'<tr class="{m}">{x}</tr>' for x, m in zip(lines, marks, strict=False)) + "</table>"


def _header(result: dict[str, Any], name: str) -> str:
    verdict = f'<p class="verdict">{escape(str(result["verdict"]))}</p>' if result.get("verdict") else ""
    goal = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in result.get("goal", {}).items())
    parts = [str(result.get("created", "")), f"goal: {goal}" if goal else ""]
    return f'<h1>{name}</h1>{verdict}<p class="faint">{escape(_join(*parts))}</p>'


def _methods(result: dict[str, Any]) -> str:
    methods = result.get("methods")
    if not methods:
        return ""
    columns = _columns(result)
    classes = ["tuned" if method["key"] == "tuned" else "" for method in methods]
    return _grid([column.title for column in columns], _rows(result, columns), classes) + _comparison(result)


def _comparison(result: dict[str, Any]) -> str:
    found = result.get("comparison")
    if not found:
        return ""
    loss = escape(_loss_name(result))
    text = (
        f"Random hand-off at the speed of the tuned policy: {loss} {_format(found['random_loss_at_same_speed'], '.3f')}"
    )
    if "difference" in found:
        text += f"; difference {_with_interval(found['difference'], found.get('interval'), '.3f')}"
    if "confidence" in found:
        text += f" ({found['confidence']:.0%} confidence)"
    return f"<p>{text}.</p>"


def _replay_note(result: dict[str, Any]) -> str:
    text = "Points are measured; dashed lines are replayed predictions."
    ratios = [result.get("replay", {}).get(f"live_{what}_over_replayed") for what in ("speedup", "loss")]
    if None in map(_number, ratios):
        return text
    return f"{text} Live, the tuned policy had {ratios[0]:.2f} times its replayed speedup and {ratios[1]:.2f} its loss."


def _frontier_plot(result: dict[str, Any]) -> go.Figure | None:
    methods = _measured(result)
    curves = {name: points for name, points in result.get("frontier", {}).items() if points}
    if not methods and not curves:
        return None
    plot = _plot("frontier", result, height=520)
    for name, points in curves.items():
        x, y = zip(*points, strict=True)
        line = {"dash": "dash", "color": _curve_colour(name)}
        plot.add_scatter(x=x, y=y, mode="lines", line=line, name=escape(f"{_curve_name(name)} (predicted)"))
    for method in methods:
        plot.add_scatter(
            x=[method["speedup"]],
            y=[method["loss"]],
            error_x=_plotly_errors(method, "speedup"),
            error_y=_plotly_errors(method, "loss"),
            mode="markers",
            marker={"size": 14 if method["key"] == "tuned" else 10, "color": _colour(method["key"])},
            name=escape(_label(method)),
        )
    goal = result.get("goal", {})
    if "target_speedup" in goal:
        plot.add_vline(goal["target_speedup"], line_dash="dot", annotation_text="target")
    if "quality_budget" in goal:
        plot.add_hline(goal["quality_budget"], line_dash="dot", annotation_text="budget")
    return plot


def _plotly_errors(method: dict[str, Any], key: str) -> dict[str, Any] | None:
    bars = _errors(method, key)
    return {"type": "data", "symmetric": False, "arrayminus": bars[0], "array": bars[1]} if bars else None


def _plot(name: str, result: dict[str, Any], height: int) -> go.Figure:
    axis = {"gridcolor": GRID, "zeroline": False}
    return go.Figure(
        layout={
            "meta": name,
            "template": "none",
            "height": height,
            "margin": {"l": 70, "r": 20, "t": 30, "b": 60},
            "xaxis": axis | {"title": {"text": "speedup over the large model alone"}, "ticksuffix": "×"},
            "yaxis": axis | {"title": {"text": escape(f"{_loss_name(result)} (lower is better)")}},
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
            "hoverlabel": {"bgcolor": "white", "align": "left"},
        }
    )


def _trials_plot(result: dict[str, Any]) -> go.Figure | None:
    """Loss against speedup of every trial that has both; the chosen one is a star."""
    trials = _measured({"methods": result.get("trials", [])})
    if not trials:
        return None
    plot = _plot("trials", result, height=420)
    chosen = [trial for trial in trials if trial["number"] == result.get("chosen_trial")]
    for name, members, marker in (
        ("feasible", [t for t in trials if t.get("feasible")], {"color": "#009e73", "size": 8}),
        ("infeasible", [t for t in trials if not t.get("feasible")], {"color": "#9aa0ab", "size": 8, "symbol": "x"}),
        ("chosen", chosen, {"color": "#d55e00", "size": 17, "symbol": "star"}),
    ):
        if members:
            hover = [_trial_text(trial) for trial in members]
            x, y = [t["speedup"] for t in members], [t["loss"] for t in members]
            plot.add_scatter(x=x, y=y, mode="markers", marker=marker, name=name, hovertext=hover)
    return plot


def _trial_text(trial: dict[str, Any]) -> str:
    params = [
        f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}"
        for key, value in trial.get("params", {}).items()
    ]
    return "<br>".join(map(escape, [f"trial {trial['number']}", *params]))


def _policy(result: dict[str, Any]) -> str:
    policy = result.get("policy")
    if not policy:
        return ""
    facts = [(key, policy[key]) for key in ("kind", "label", "threshold") if policy.get(key) is not None]
    text = _join(*(f"{key} {_format(v, '.4g') if isinstance(v, float) else v}" for key, v in facts))
    body = f"<p>{escape(str(policy.get('describe', '')))}</p>" + f'<p class="faint">{escape(text)}</p>'
    weights = policy.get("weights")
    if weights:
        heaviest = sorted(weights.items(), key=lambda item: -abs(_number(item[1]) or 0))
        return body + _grid(("feature", "weight"), [(name, _format(weight, "+.4g")) for name, weight in heaviest])
    if policy.get("features"):
        body += f"<p>features: {escape(', '.join(map(str, policy['features'])))}</p>"
    return body


def _costs(result: dict[str, Any]) -> str:
    costs = {name: cost for name, cost in result.get("cost", {}).items() if cost}
    if not costs:
        return ""
    widths = sorted({width for cost in costs.values() for width in cost}, key=float)
    rows = [[name, *(_milliseconds(cost.get(width)) for width in widths)] for name, cost in costs.items()]
    return _grid(["model", *(f"{width} token{'' if float(width) == 1 else 's'}" for width in widths)], rows)


def _milliseconds(seconds: Any) -> str:
    number = _number(seconds)
    return DASH if number is None else f"{number * 1000:.2f}"


def _splits(result: dict[str, Any]) -> str:
    splits = result.get("splits")
    head = ("split", "prompts", "groups", "hash")
    rows = [
        [name, *(split.get(key, DASH) for key in head[1:3]), str(split.get("hash", DASH))[:16]]
        for name, split in (splits or {}).items()
    ]
    return _grid(head, rows) if rows else ""


def _plain(result: dict[str, Any]) -> str:
    """Measures by method key, such as plain regret: {"regret": {"tuned": .03, ...}, ...}."""
    measures = {name: values for name, values in result.get("plain", {}).items() if isinstance(values, dict)}
    methods = [m for m in result.get("methods", []) if any(m["key"] in values for values in measures.values())]
    rows = [[_label(m), *(_format(values.get(m["key"]), ".4g") for values in measures.values())] for m in methods]
    return _grid(["method", *measures], rows) if rows else ""


def _models(result: dict[str, Any]) -> str:
    models, keys = result.get("models", []), ("name", "tokenizer", "config", "weights")
    rows = [[str(model.get(key, DASH))[: 60 if key == "name" else 16] for key in keys] for model in models]
    machine = _join(*(f"{key} {value}" for key, value in result.get("machine", {}).items()))
    return (_grid(keys, rows) if rows else "") + (f'<p class="faint">{escape(machine)}</p>' if machine else "")


def _samples(result: dict[str, Any]) -> str:
    samples = result.get("samples")
    if not samples:
        return ""
    writers = sorted({writer for sample in samples for _, writer, _ in sample["tokens"] if writer >= 0})
    names = [str(model.get("name", f"model {i}")) for i, model in enumerate(result.get("models", []))]
    names += [f"model {i}" for i in range(len(names), max(writers, default=-1) + 1)]
    tints = {i: _tint(i, len(names)) for i in range(len(names))}
    key = "".join(f'<span class="key" style="background:{tints[i]}">{escape(names[i])}</span>' for i in writers)
    texts = [
        f'<div class="sample"><div class="prompt">{escape(str(sample["prompt"]))}</div>'
        f'<div class="text">{"".join(_token(*token, names, tints) for token in sample["tokens"])}</div></div>'
        for sample in samples
    ]
    return f"<p>{key}</p>{''.join(texts)}"


def _tint(writer: int, count: int) -> str:
    """The writer's colour, light enough to read on: the first model's and the last model's are those of the plots."""
    middle = MIDDLE[(writer - 1) % len(MIDDLE)]
    return (COLOURS["large"] if writer == count - 1 else COLOURS["small"] if writer == 0 else middle) + "33"


def _token(text: str, writer: int, risk: float | None, names: Sequence[str], tints: dict[int, str]) -> str:
    if writer < 0:
        return escape(text)
    title = names[writer] if _number(risk) is None else f"{names[writer]}, risk {risk:.3f}"
    return f'<span style="background:{tints[writer]}" title="{escape(title)}">{escape(text)}</span>'
