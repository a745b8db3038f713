"""What a run found as one HTML page: a pure function of the dict in runs/NAME/result.json.

A key that is missing leaves out what would have shown it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from train.common import atomic
from train.reports.figure import COLOURS, GRID, INK, curve_colour, curve_name, curves
from train.reports.tables import (
    DASH,
    axis_titles,
    bars,
    cells,
    format_number,
    label,
    loss_name,
    measured,
    number,
    plane,
    with_interval,
)

WRITERS = ("#9a4f86", "#8c6510", "#009e73")  # those between the smallest and the largest model
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; img-src data: blob:"
DISTURBED = 1.25
"""factor by which live seconds may differ from the timing table"""
SEEN = (
    "The shortest held-out prompts, one of each family. Every token has the colour of its writer; point at it to see "
    "its risk: from the threshold on, "
)
SEEN_AS = {
    "backoff": "the large model is asked. It is also asked about every end by the small one.",
    "speculative": "a draft ends.",
    "hybrid": "a draft ends.",
}
FRONT = "No candidate is predicted to be faster at so little loss; by the tuning prompts, not measured."
CANDIDATE = {  # column of the certificate: key of a candidate, format
    "capped loss": ("capped_loss", ".4f"),
    "p-value": ("pvalue", ".3g"),
    "its own bound": ("upper", ".4f"),
    "loss": ("loss", ".4f"),
    "replayed loss": ("replayed_loss", ".4f"),
}
STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #1f2430; max-width: 1040px; margin: 40px auto; padding: 0 20px }
h1 { font-size: 28px; margin: 0 } h2 { font-size: 20px; margin: 44px 0 8px }
.verdict { font-size: 19px; border-left: 4px solid #009e73; padding: 4px 0 4px 14px; margin: 14px 0 }
.faint { color: #6b7280; font-size: 14px; overflow-wrap: anywhere } .wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 14.5px; font-variant-numeric: tabular-nums }
th, td { padding: 5px 14px 5px 0; text-align: right; border-bottom: 1px solid #e7e9ee; white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { color: #6b7280; font-weight: 600 }
tr.tuned td { font-weight: 700; color: #00775a }
.sample { border: 1px solid #e7e9ee; border-radius: 8px; padding: 12px 16px; margin: 12px 0 }
.prompt, .text { white-space: pre-wrap; overflow-wrap: anywhere } .prompt { color: #6b7280; margin-bottom: 8px }
.both { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 20px }
.text span, .key { border-radius: 3px; padding: 1px 0 } .key { padding: 1px 6px; margin-right: 6px }
"""


def write_html(result: dict[str, Any], path: Path | str) -> None:
    """One self-contained page that opens offline; its own content policy forbids the browser to load anything else."""
    name = escape(str(result.get("name", "report")))
    sections = [
        _header(result, name),
        section("Methods", _methods(result)),
        section("Certificate", _certificate(result)),
        section("Frontier", _frontier(result), _replay_note(result)),
        section("Best of all candidates", _front(result), FRONT),
        section("Search", _trials(result), _trials_note(result)),
        section("Policy", _policy(result)),
        section("Calibration", _calibration(result), _calibration_note(result)),
        section("Cost", _costs(result), _cost_note(result)),
        section("Splits", _splits(result), "No group of related prompts is in two splits."),
        section("Logged, never searched", _plain(result)),
        section("Models and machine", _models(result)),
        section("Samples", _samples(result), SEEN + SEEN_AS[result.get("method", "backoff")]),
    ]
    atomic.write(path, page(name, sections).encode())


def page(name: str, sections: Iterable[str]) -> str:
    """A whole page, its title escaped already, with the library that draws the plots in it."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"<script>{get_plotlyjs()}</script></head>"
        f"<body>{''.join(sections)}</body></html>"
    )


def section(title: str, body: str, note: str = "") -> str:
    """A part of a page; empty without a body."""
    below = f'<p class="faint">{note}</p>' if note else ""
    return f'<section><h2>{title}</h2>{below}<div class="wide">{body}</div></section>' if body else ""


def grid(head: Sequence[Any], rows: Iterable[Sequence[Any]], marked: Sequence[bool] = ()) -> str:
    """An HTML table, some of its rows marked; empty without rows. Every cell is escaped."""
    lines = ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
    marks = [*marked, *[False] * len(lines)]
    body = [f'<tr class="tuned">{x}</tr>' if m else f"<tr>{x}</tr>" for x, m in zip(lines, marks, strict=False)]
    top = "".join(f"<th>{escape(str(cell))}</th>" for cell in head)
    return f"<table><tr>{top}</tr>{''.join(body)}</table>" if lines else ""


def _header(result: dict[str, Any], name: str) -> str:
    verdict = f'<p class="verdict">{escape(str(result["verdict"]))}</p>' if result.get("verdict") else ""
    goal = [f"{key.replace('_', ' ')} {value:g}" for key, value in result.get("goal", {}).items()]
    return f"<h1>{name}</h1>{verdict}{_faint([str(result.get('created', '')), *goal])}"


def _faint(parts: Iterable[str]) -> str:
    text = escape("  ·  ".join(part for part in parts if part))
    return f'<p class="faint">{text}</p>' if text else ""


def _methods(result: dict[str, Any]) -> str:
    head, *rows = cells(result)
    found, against = result.get("comparison"), result.get("against")
    table = grid(head, rows, [m["key"] == "tuned" for m in result.get("methods", [])])
    if rows and against:
        ratio = with_interval(against["ratio"], against["interval"], ".3f")
        return f"{table}<p>Speed over {escape(against['of'])}: {ratio} ({against['confidence']:.0%} confidence).</p>"
    if rows and found and not found.get("bracketed", True):
        return f"{table}<p>Neither rate of random hand-off is near the speed of the tuned policy.</p>"
    return table + (
        f"<p>Random hand-off at the speed of the tuned policy: {escape(loss_name(result))} "
        f"{format_number(found['random_loss_at_same_speed'], '.3f')}; difference "
        f"{with_interval(found['difference'], found['interval'], '.3f')} ({found['confidence']:.0%} confidence).</p>"
        if rows and found
        else ""
    )


def _certificate(result: dict[str, Any]) -> str:
    """The promise, what was tested for it in order, its slices and what it rests on."""
    found = result.get("certificate")
    if not found:
        return ""
    rows = [
        (
            i + 1,
            *(format_number(c.get(key), form) for key, form in CANDIDATE.values()),
            c.get("above_cap", "not tested"),
            with_interval(c.get("priced_speedup"), c.get("priced_speedup_interval"), ".2f"),
        )
        for i, c in enumerate(found["candidates"])
    ]
    families = [
        (f["family"], f["prompts"], format_number(f["capped_loss"], ".4f"), f["above_cap"]) for f in found["families"]
    ]
    chosen = [i == found["chosen"] for i in range(len(rows))]
    test = [found["test"], f"p-values at most {format_number(found['level'], '.4g')} pass"]
    return (
        f"<p>{escape(found['claim'])}</p>{_faint(test)}"
        + grid(("candidate", *CANDIDATE, "above the cap", "priced speedup"), rows, chosen)
        + grid(("family", "prompts", "capped loss", "above the cap"), families)
        + "".join(f'<p class="faint">{escape(text)}</p>' for text in found["assumptions"])
    )


def _replay_note(result: dict[str, Any]) -> str:
    text = "Points are measured; dashed lines are predictions by the tuning prompts."
    ratios = [result.get("replay", {}).get(f"live_{what}_over_replayed") for what in ("speedup", "loss")]
    if number(ratios[0]) is None:
        return text
    if number(ratios[1]) is None:
        return f"{text} Live, the tuned drafts had {ratios[0]:.2f} times their predicted speedup."
    return f"{text} Live, the tuned policy had {ratios[0]:.2f} times its replayed speedup and {ratios[1]:.2f} its loss."


def _frontier(result: dict[str, Any]) -> str:
    """Measured methods with intervals, and the replayed curves."""
    plot, (across, up) = axes(result), plane(result)
    for name, points in curves(result).items():
        x, y = zip(*points, strict=True)
        line = {"dash": "dash", "color": curve_colour(name)}
        plot.add_scatter(x=x, y=y, mode="lines", line=line, name=escape(curve_name(name)))
    for method in measured(result.get("methods", []), (across, up)):
        plot.add_scatter(
            x=[method[across]],
            y=[method[up]],
            error_x=_errors(method, across),
            error_y=_errors(method, up),
            mode="markers",
            marker={"size": 14 if method["key"] == "tuned" else 10, "color": COLOURS.get(method["key"], INK)},
            name=escape(label(method)),
        )
    goal = result.get("goal", {})
    if "target_speedup" in goal:
        plot.add_vline(goal["target_speedup"], line_dash="dot", annotation_text="target")
    if "quality_budget" in goal:
        plot.add_hline(goal["quality_budget"], line_dash="dot", annotation_text="budget")
    return drawn(plot, "frontier")


def _front(result: dict[str, Any], rows: int = 12) -> str:
    """Points of the Pareto front, evenly spaced in its order, with the settings that reach them."""
    points = result.get("front", [])
    count = min(rows, len(points))
    picked = [points[i * (len(points) - 1) // max(1, count - 1)] for i in range(count)]
    return grid(
        ("settings", "speedup", loss_name(result)),
        [
            (", ".join(_settings(p["params"])), format_number(p["speedup"], ".2f"), format_number(p["loss"], ".3f"))
            for p in picked
        ],
    )


def _errors(method: dict[str, Any], key: str) -> dict[str, Any]:
    below, above = bars(method, key)
    return {"type": "data", "symmetric": False, "arrayminus": [below], "array": [above]}


def _trials(result: dict[str, Any]) -> str:
    """Every trial that has a place in the plane; the chosen one is a star."""
    plot, (across, up) = axes(result), plane(result)
    trials = measured([trial.get("params", {}) | trial for trial in result.get("trials", [])], (across, up))
    for name, members, marker in (
        ("feasible", [t for t in trials if t.get("feasible")], {"color": "#009e73", "size": 8}),
        ("infeasible", [t for t in trials if not t.get("feasible")], {"color": "#9aa0ab", "size": 8, "symbol": "x"}),
        (
            "chosen",
            [t for t in trials if t["number"] == result.get("chosen_trial")],
            {"color": "#d55e00", "size": 17, "symbol": "star"},
        ),
    ):
        if members:
            hover = [_trial_text(trial) for trial in members]
            x, y = [t[across] for t in members], [t[up] for t in members]
            plot.add_scatter(x=x, y=y, mode="markers", marker=marker, name=name, hovertext=hover)
    return drawn(plot, "trials")


def _trials_note(result: dict[str, Any]) -> str:
    pruned = result.get("pruned", 0)
    more = f" {pruned} more were given up before the last prompt, surely worse than the best then." if pruned else ""
    return f"One point per trial, as predicted on the tuning prompts.{more}"


def _trial_text(trial: dict[str, Any]) -> str:
    return "<br>".join(map(escape, [f"trial {trial['number']}", *_settings(trial.get("params", {}))]))


def _settings(params: dict[str, Any]) -> list[str]:
    return [f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}" for key, value in params.items()]


def axes(result: dict[str, Any]) -> go.Figure:
    """An empty plot of the result's plane."""
    axis = {"gridcolor": GRID, "zeroline": False}
    across, up = (
        axis | {"title": {"text": escape(title)}} | ({"ticksuffix": "×"} if key == "speedup" else {})
        for key, title in zip(plane(result), axis_titles(result), strict=True)
    )
    return go.Figure(
        layout={
            "template": "none",
            "height": 480,
            "margin": {"l": 70, "r": 20, "t": 30, "b": 60},
            "xaxis": across,
            "yaxis": up,
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
            "hoverlabel": {"bgcolor": "white", "align": "left"},
        }
    )


def drawn(plot: go.Figure, name: str) -> str:
    """The plot as a part of a page; empty when there is nothing in it."""
    if not plot.data:
        return ""
    config = {"displaylogo": False, "responsive": True}
    return plot.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=config)


def _policy(result: dict[str, Any]) -> str:
    policy = result.get("policy")
    if not policy:
        return ""
    facts = [f"{key} {policy[key]}" for key in ("kind", "label") if policy.get(key) is not None]
    facts.append(f"threshold {format_number(policy.get('threshold'), '.4g')}")
    decoder = f"<p>The decoder as a whole: {escape(result['decoder'])}.</p>" if "decoder" in result else ""
    body = f"{decoder}<p>{escape(str(policy.get('describe', '')))}</p>{_faint(facts)}"
    weights = sorted((policy.get("weights") or {}).items(), key=lambda item: -abs(number(item[1]) or 0))
    if weights:
        return body + grid(("feature", "weight"), [(name, format_number(w, "+.4g")) for name, w in weights])
    features = ", ".join(map(str, policy.get("features", [])))
    return body + (f"<p>features: {escape(features)}</p>" if features else "")


def _calibration(result: dict[str, Any]) -> str:
    """Mean label against mean predicted risk, a point for each bin, and the diagonal of a risk that is true."""
    plot = go.Figure(
        layout=axes(result).layout.update(
            height=380,
            xaxis={"title": {"text": "predicted risk"}, "ticksuffix": ""},
            yaxis={"title": {"text": "mean label"}},
        )
    )
    bins = result.get("calibration", {}).get("bins", [])
    if bins:
        x, y = [b["predicted"] for b in bins], [b["observed"] for b in bins]
        ends, size = [0.0, max(*x, *y)], {"size": 9, "color": COLOURS["tuned"]}
        plot.add_scatter(x=ends, y=ends, mode="lines", line={"dash": "dot", "color": INK}, name="a true risk")
        hover = [f"{b['rows']} positions" for b in bins]
        plot.add_scatter(x=x, y=y, mode="markers", marker=size, name="tuned policy", hovertext=hover)
    return drawn(plot, "calibration")


def _calibration_note(result: dict[str, Any]) -> str:
    found = result.get("calibration")
    if not found:
        return ""
    return (
        f"On {found['rows']} positions of the tuning prompts: Brier score {format_number(found['brier'], '.4f')} "
        f"(the best constant: {format_number(found['constant'], '.4f')}), mean distance from the diagonal "
        f"{format_number(found['error'], '.4f')}."
    )


def _costs(result: dict[str, Any]) -> str:
    costs = result.get("cost", {})
    widths = sorted({width for cost in costs.values() for width in cost}, key=float)
    rows = [
        [name, *(format_number(1000 * cost[w], ".2f") if number(cost.get(w)) is not None else DASH for w in widths)]
        for name, cost in costs.items()
    ]
    return grid(["model", *(f"{width} token{'s' * (float(width) != 1)}" for width in widths)], rows)


def _cost_note(result: dict[str, Any]) -> str:
    text = "Milliseconds of one forward pass, by the number of tokens it reads."
    ratio = number(result.get("live_over_table"))
    if ratio is None or 1 / DISTURBED <= ratio <= DISTURBED:
        return text
    return (
        f"{text} Live, the large model took {ratio:.2f} times what this table says: the machine was not equally free "
        "all the time, or forwards are not what takes the time. Draft length and predictions may be wrong."
    )


def _splits(result: dict[str, Any]) -> str:
    keys = ("prompts", "groups", "hash")
    splits = result.get("splits", {}).items()
    return grid(("split", *keys), [[name, *(str(one.get(key, DASH))[:16] for key in keys)] for name, one in splits])


def _plain(result: dict[str, Any]) -> str:
    methods = [m for m in result.get("methods", []) if number(m.get("plain_regret")) is not None]
    return grid(("method", "plain regret"), [(label(m), format_number(m["plain_regret"], ".4g")) for m in methods])


def _models(result: dict[str, Any]) -> str:
    keys = ("name", "tokenizer", "config", "weights")
    rows = [[str(model.get(key, DASH)) for key in keys] for model in result.get("models", [])]
    return grid(keys, rows) + _faint(f"{key} {value}" for key, value in result.get("machine", {}).items())


def _samples(result: dict[str, Any]) -> str:
    samples = result.get("samples", [])
    writers = sorted({writer for sample in samples for _, writer, _ in sample["tokens"] if writer >= 0})
    names = [str(model.get("name", f"model {i}")) for i, model in enumerate(result.get("models", []))]
    names += [f"model {i}" for i in range(len(names), max(writers, default=-1) + 1)]
    tints = [f"{WRITERS[(i - 1) % len(WRITERS)]}33" for i in range(len(names))]  # light enough to read on
    if names:
        tints[0], tints[-1] = f"{COLOURS['small']}33", f"{COLOURS['large']}33"
    threshold = number((result.get("policy") or {}).get("threshold"))
    limit = "" if threshold is None else f", threshold {threshold:.3f}"
    key = [f'<span class="key" style="background:{tints[i]}">{escape(names[i])}</span>' for i in writers]
    texts = [
        f'<div class="sample"><div class="prompt">{escape(str(sample["prompt"]))}</div><div class="both">'
        f"{_answer('tuned policy', ''.join(_token(*token, limit, names, tints) for token in sample['tokens']))}"
        f"{_answer('large model alone', escape(str(sample.get('large', ''))))}</div></div>"
        for sample in samples
    ]
    return f"<p>{''.join(key)}</p>{''.join(texts)}" if texts else ""


def _answer(title: str, body: str) -> str:
    return f'<div><div class="faint">{title}</div><div class="text">{body}</div></div>' if body else ""


def _token(text: str, writer: int, risk: float | None, limit: str, names: Sequence[str], tints: Sequence[str]) -> str:
    if writer < 0:
        return escape(text)
    title = names[writer] if number(risk) is None else f"{names[writer]}, risk {risk:.3f}{limit}"
    return f'<span style="background:{tints[writer]}" title="{escape(title)}">{escape(text)}</span>'
