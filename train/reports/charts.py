"""The charts of the report, which answer to the pointer."""

from html import escape
from typing import Any

import plotly.graph_objects as go

from train.reports import drawing
from train.reports.plane import COLOURS, GRID, INK, PAPER, axis_titles, bars, curves, measured, plane

INFEASIBLE, CHOSEN = "#9aa0ab", "#d55e00"


def frontier(result: dict[str, Any]) -> str:
    """Measured methods with intervals, and the predicted curves."""
    chart, (across, up) = axes(result), plane(result)
    for name, colour, points in curves(result):
        x, y = zip(*points, strict=True)
        chart.add_scatter(x=x, y=y, mode="lines", line={"dash": "dash", "color": colour}, name=escape(name))
    for method in measured(result.get("methods", []), (across, up)):
        size, colour = 14 if method["key"] == "tuned" else 10, COLOURS.get(method["key"], INK)
        place = {"x": [method[across]], "y": [method[up]]}
        place |= {"error_x": _interval(method, across), "error_y": _interval(method, up)}
        name = escape(method["label"])
        chart.add_scatter(mode="markers", marker={"size": size, "color": colour}, name=name, **place)
    goal = result.get("goal", {})
    if "target_speedup" in goal:
        chart.add_vline(goal["target_speedup"], line_dash="dot", line_color=INK, annotation_text="target")
    if "quality_budget" in goal:
        chart.add_hline(goal["quality_budget"], line_dash="dot", line_color=INK, annotation_text="budget")
    return drawn(chart, "frontier")


def _interval(method: dict[str, Any], key: str) -> dict[str, Any]:
    below, above = bars(method, key)
    return {"type": "data", "symmetric": False, "arrayminus": [below], "array": [above]}


def trials(result: dict[str, Any]) -> str:
    """Every trial that has a place in the plane; the chosen one is a star."""
    chart, keys = axes(result), plane(result)
    every = measured([trial.get("params", {}) | trial for trial in result.get("trials", [])], keys)
    meets = lambda trial: bool(trial.get("feasible"))  # noqa: E731
    chosen = [trial for trial in every if trial["number"] == result.get("chosen_trial")]
    for name, members, marker in (
        ("meets the goal", [t for t in every if meets(t)], {"color": COLOURS["tuned"], "size": 8}),
        ("does not", [t for t in every if not meets(t)], {"color": INFEASIBLE, "size": 8, "symbol": "x"}),
        ("chosen", chosen, {"color": CHOSEN, "size": 17, "symbol": "star"}),
    ):
        if members:
            x, y = ([trial[key] for trial in members] for key in keys)
            hover = [
                "<br>".join(map(escape, [f"trial {t['number']}", *settings(t.get("params", {}))])) for t in members
            ]
            chart.add_scatter(x=x, y=y, mode="markers", marker=marker, name=name, hovertext=hover)
    return drawn(chart, "trials")


def settings(params: dict[str, Any]) -> list[str]:
    """`name = value` of each parameter."""
    return [f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}" for key, value in params.items()]


def calibration(bins: list[dict[str, float]]) -> str:
    """Observed against predicted risk, a point for each bin, and the diagonal of a calibrated risk."""
    chart = _empty("predicted risk", "observed mean of what it predicts", height=380)
    if bins:
        x, y = [b["predicted"] for b in bins], [b["observed"] for b in bins]
        ends, marker = [0.0, max(*x, *y)], {"size": 9, "color": COLOURS["tuned"]}
        chart.add_scatter(x=ends, y=ends, mode="lines", line={"dash": "dot", "color": INK}, name="calibrated")
        hover = [f"{b['rows']} positions" for b in bins]
        chart.add_scatter(x=x, y=y, mode="markers", marker=marker, name="tuned policy", hovertext=hover)
    return drawn(chart, "calibration")


def axes(result: dict[str, Any]) -> go.Figure:
    """An empty chart of the result's plane."""
    chart = _empty(*map(escape, axis_titles(result)))
    for key, update in zip(plane(result), (chart.update_xaxes, chart.update_yaxes), strict=True):
        if key == "speedup":
            update(ticksuffix="×")
    return chart


def _empty(across: str, up: str, height: int = 480) -> go.Figure:
    axis = {"gridcolor": GRID, "zeroline": False}
    return go.Figure(
        layout={
            "template": "none",
            "height": height,
            "margin": {"l": 60, "r": 15, "t": 30, "b": 60},
            "paper_bgcolor": PAPER,
            "plot_bgcolor": PAPER,
            "legend": {"orientation": "h", "y": -0.25, "yanchor": "top"},
            "xaxis": axis | {"title": {"text": across}},
            "yaxis": axis | {"title": {"text": up}},
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
            "hoverlabel": {"bgcolor": PAPER, "align": "left"},
        }
    )


def drawn(chart: go.Figure, name: str) -> str:
    """The chart as a part of a page, ``name`` its id there; empty when there is nothing in it."""
    if not chart.data:
        return ""
    config = {"displaylogo": False, "responsive": True}
    return drawing.chart(name, chart.to_json(), config)
