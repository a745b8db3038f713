"""The frontier of any set of methods as tables, as a PNG, and as a page that opens offline."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from policies.storage import atomic
from train.reports import charts
from train.reports.figure import dress, legend, save, scales
from train.reports.markup import faint, grid, page, section
from train.reports.plane import COLOURS, FAINT, FORMATS, INK, bars, measured, plane
from train.reports.tables import cells, format_number, loss_name, with_interval
from train.search.goal import pareto

WORTH = {
    "tokens_per_second": ("tokens/s", ".1f"),
    "speedup": ("speedup", ".2f"),
    "loss": (None, ".3f"),
    "difference": ("minus baseline", "+.3f"),
    "score": ("task score", ".3f"),
    "score_difference": ("minus large's", "+.3f"),
    "at_cap": ("at length cap", ".0%"),
    "recovered": ("gap recovered", ".0%"),
    "total_time_ratio": ("time ratio", ".2f"),
    "joules_per_token": ("J/token", ".2f"),
}
HOW = {
    "accepted": ("accepted a round", ".2f"),
    "verified": ("draft tokens verified a call", ".2f"),
    "calls_per_token": ("target calls a token", ".3f"),
    "large_share": ("by large model", ".0%"),
    "same_text": ("same text as large", ".0%"),
    "length_ratio": ("length ratio", ".2f"),
    "perplexity": ("perplexity", ".2f"),
    "plain_regret": ("plain regret", ".3f"),
}
LINES = ("tuned", "large", "small", "speculative")
SHAPES = ("o", "D", "^", "v", "s", "P", "X", "<", ">", "h", "*", "p", "d")


def colour(method: dict[str, Any]) -> str:
    """One colour for each kind of method: alone, hand-off, exact drafts, lossy drafts."""
    role = method.get("role")
    if role == "draft":
        return COLOURS["speculative" if method["lossless"] else "tuned"]
    return COLOURS.get({"handoff": "random_low", "beam": "llamacpp"}.get(role, role), INK)


def how_timed(result: dict[str, Any]) -> str:
    """Number of prompts, and how time was measured, for the reader."""
    batch = result.get("batch_size", 1)
    at_once = "one by one" if batch == 1 else f"in batches of {batch}"
    clock = f"{result['timed']} timed {at_once}" if result["timed"] else "time priced from calls, not measured"
    return f"{result['prompts']} prompts, {clock}"


def draw(result: dict[str, Any], path: Path | str) -> None:
    """Every method a numbered point with its intervals; the line joins those that no other beats."""
    across, up = plane(result)
    methods = measured(result["methods"], (across, up))
    below = 0.21 * ((len(methods) + 2) // 2) + 0.75  # inches for the legend and the axis above it
    height = 5 + below
    picture = Figure(figsize=(10, height), dpi=160, facecolor="white")
    axes = picture.add_axes((0.08, below / height, 0.9, 4.2 / height))
    sign = -1 if up == "score" else 1  # of which more is better
    front = pareto({"speedup": m[across], "loss": sign * m[up]} for m in methods)[::-1]
    line = [point["speedup"] for point in front], [sign * point["loss"] for point in front]
    axes.plot(*line, "--", color=FAINT, lw=1.2, zorder=1, label="not beaten in both")
    for i, method in enumerate(methods):
        _point(axes, i, method, (across, up))
    scales(axes, result)
    picture.text(0.02, 1 - 0.32 / height, str(result["name"])[:75], fontsize=14, color=INK, parse_math=False)
    picture.text(0.02, 1 - 0.58 / height, f"{how_timed(result)}; 95 % intervals", fontsize=9, color=FAINT)
    legend(axes)
    save(picture, path)


def draw_lines(result: dict[str, Any], lines: dict, axis: str, path: Path | str) -> None:
    """Accepted tokens, speedup and loss against one setting; ``lines`` are series of (setting, row of a method)."""
    picture = Figure(figsize=(12, 4.4), dpi=160, facecolor="white")
    colours = dict(zip(lines, (COLOURS[key] for key in LINES), strict=False))
    titles = {"accepted": "accepted draft tokens a round", "speedup": "speedup", "loss": loss_name(result)}
    for i, (key, title) in enumerate(titles.items()):
        axes = picture.add_axes((0.05 + 0.325 * i, 0.24, 0.27, 0.58))
        for name, line in lines.items():
            x, rows = zip(*line, strict=True)
            up = list(zip(*(bars(row, key) for row in rows), strict=True))
            style = {"color": colours[name], "marker": "o", "ms": 4, "lw": 1.5, "capsize": 2, "elinewidth": 0.9}
            axes.errorbar(x, [row[key] for row in rows], up, label=name, **style)
        axes.set_title(title, fontsize=10.5, color=INK, parse_math=False)
        axes.set_xlabel(axis, color=INK, fontsize=10)
        dress(axes, size=9)
    legend(axes, columns=4)
    picture.text(0.02, 0.93, f"{result['name']}: {how_timed(result)}; 95 % intervals", fontsize=11, parse_math=False)
    save(picture, path)


def _point(axes: Axes, i: int, method: dict[str, Any], keys: tuple[str, str]) -> None:
    x, y = (method[key] for key in keys)
    across, up = ([[bar] for bar in bars(method, key)] for key in keys)
    style = {"color": colour(method), "zorder": 4}
    axes.errorbar(x, y, up, across, fmt="none", elinewidth=1.3, alpha=0.7, **style)
    name = f"{i + 1}  {method['label']}:  {x:.2f}×, {format_number(y, '.3f')}"
    axes.plot(x, y, SHAPES[i % len(SHAPES)], ms=9, mec="white", label=name, **style)
    axes.annotate(f"{i + 1}", (x, y), (5, 5), textcoords="offset points", fontsize=8, color=INK, zorder=5)


def write_html(result: dict[str, Any], path: Path | str) -> None:
    """Write the tables, and a chart with a choice of prompt families, as one page that loads nothing."""
    name = str(result["name"])
    worth, how = cells(result, WORTH), cells(result, HOW)
    models = grid(("model", "weights"), [(m["name"], m["weights"]) for m in result["models"]])
    machine = faint(f"{key} {value}" for key, value in result["machine"].items())
    sections = [
        f"<h1>{escape(name)}</h1>{faint([how_timed(result), result['created']])}",
        section("Quality against speed", _chart(result), "Choose a family; point at a method for its numbers."),
        section("Quality and speed", grid(worth[0], worth[1:]), f"Baseline: {result['baseline']}."),
        section("How each method reaches them", grid(how[0], how[1:])),
        section(f"{loss_name(result).capitalize()} by family", _families(result)),
        section("Models and machine", models + machine),
    ]
    atomic.write(path, page(name, sections).encode())


def _families(result: dict[str, Any]) -> str:
    families = result["families"]
    rows = [
        [m["label"], *(with_interval(one["loss"], one["loss_interval"], ".2f") for one in m["families"].values())]
        for m in result["methods"]
    ]
    return grid(["method", *(f"{family} ({n})" for family, n in families.items())], rows)


def _chart(result: dict[str, Any]) -> str:
    chart, keys, families = charts.axes(result), plane(result), result["families"]
    for i, method in enumerate(result["methods"]):
        marker = {"size": 11, "color": colour(method), "symbol": i % 25}
        point = {key.replace(".", "_"): value for key, value in _shown(method, method, keys).items()}
        bar, name = {"type": "data", "symmetric": False}, escape(method["label"])
        chart.add_scatter(mode="markers", marker=marker, name=name, error_x=bar, error_y=bar, **point)
    buttons = [_button("all prompts", [_shown(m, m, keys) for m in result["methods"]])]
    buttons += [_button(f, [_shown(m, m["families"][f], keys) for m in result["methods"]]) for f in families]
    chart.update_layout(updatemenus=[{"buttons": buttons, "x": 1, "xanchor": "right", "y": 1.12}], height=620)
    return charts.drawn(chart, "frontier")


def _button(name: str, points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    restyled = {key: [point[key] for point in points] for key in points[0]}
    return {"label": escape(name), "method": "restyle", "args": [restyled]}


def _shown(method: dict[str, Any], row: dict[str, Any], keys: tuple[str, str]) -> dict[str, Any]:
    """A point of all prompts or of a family, as plotly's attributes; of a family that was not timed there is none."""
    point = {"x": [], "y": [], "hovertext": ""} | {f"error_{a}.array{b}": [] for a in "xy" for b in ("", "minus")}
    if None in (row.get(key) for key in keys):
        return point
    text = [escape(method["label"])]
    for axis, key in zip("xy", keys, strict=True):
        form, _ = FORMATS[key]
        below, above = bars(row, key)
        point |= {axis: [row[key]], f"error_{axis}.array": [above], f"error_{axis}.arrayminus": [below]}
        text.append(f"{key} {with_interval(row[key], row[f'{key}_interval'], form)}")
    text += [f"{key} {method[key]:.3g}" for key in ("accepted", "calls_per_token") if method.get(key) is not None]
    return point | {"hovertext": "<br>".join(text)}
