"""The report of a run as one HTML page: a pure function of what result.json holds.

A key that is missing leaves out what would have shown it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from policies.storage import atomic
from train.reports import charts
from train.reports.markup import faint, grid, page, paragraph, section
from train.reports.plane import COLOURS
from train.reports.tables import DASH, cells, format_number, loss_name, number, with_interval

Result = dict[str, Any]
BETWEEN = ("#9a4f86", "#8c6510", "#009e73")
"""Colours of the tokens of the models between the smallest and the largest."""
DISTURBED = 1.25  # factor by which live seconds may differ from the timing table before the report says so
MEASURED = "Measured on the held-out prompts; in brackets 95 % intervals over prompts."
FRONT = "Predicted from the tuning prompts, not measured: no candidate is faster and loses as little."
PLAIN = "Logged only, never searched or certified: repetition lowers it."
SAMPLES = "The shortest held-out prompts, one per family. Point at a token to see who wrote it, and its risk."
CANDIDATE = {
    "capped_loss": ("capped loss", ".4f"),
    "pvalue": ("p-value", ".3g"),
    "upper": ("upper bound", ".4f"),
    "loss": ("loss", ".4f"),
    "replayed_loss": ("replayed loss", ".4f"),
    "above_cap": ("above the cap", "g"),
    "priced_speedup": ("priced speedup", ".2f"),
}
"""Columns of the certificate; what was not tested has dashes."""
FAMILY = {"prompts": ("prompts", "g"), "capped_loss": ("capped loss", ".4f"), "above_cap": ("above the cap", "g")}


def write_html(result: Result, path: Path | str) -> None:
    """Write one self-contained page that opens offline; it forbids the browser to load anything else."""
    name, methods = str(result.get("name", "report")), result.get("methods", [])
    sections = (
        ("Methods", _methods(result), MEASURED),
        ("Certificate", _certificate(result.get("certificate")), ""),
        ("Frontier", charts.frontier(result), _replay_note(result.get("replay", {}))),
        ("Predicted Pareto front", _front(result), FRONT),
        ("Search", charts.trials(result), _search_note(result)),
        ("Policy", _policy(result), ""),
        ("Calibration", charts.calibration(result.get("calibration", {}).get("bins", [])), _calibration_note(result)),
        ("Cost", _costs(result.get("cost", {})), _cost_note(result)),
        ("Splits", _splits(result.get("splits", {})), "Related prompts form a group; no group is in two splits."),
        ("Plain regret", _table("method", methods, {"plain_regret": ("nats per token", ".4g")}), PLAIN),
        ("Models and machine", _models(result), ""),
        ("Samples", _samples(result), SAMPLES + _threshold_note(result)),
    )
    atomic.write(path, page(name, [_header(result, name), *(section(*parts) for parts in sections)]).encode())


def _threshold_note(result: Result) -> str:
    return f" From the threshold on, {result['threshold_note']}" if result.get("threshold_note") else ""


def _header(result: Result, name: str) -> str:
    verdict = f'<p class="verdict">{escape(str(result["verdict"]))}</p>' if result.get("verdict") else ""
    goal = [f"{key.replace('_', ' ')} {value:g}" for key, value in result.get("goal", {}).items()]
    return f"<h1>{escape(name)}</h1>{verdict}{faint([str(result.get('created', '')), *goal])}"


def _table(first: str, rows: Sequence[Result], columns: dict, marked: Sequence[bool] = ()) -> str:
    """The ``columns`` of ``rows`` that have a number; empty if none has."""
    head, *lines = cells({"methods": rows}, columns)
    return grid((first, *head[1:]), lines, marked) if head[1:] else ""


def _methods(result: Result) -> str:
    head, *rows = cells(result)
    table = grid(head, rows, [method["key"] == "tuned" for method in result.get("methods", [])])
    return table and table + "".join(map(paragraph, _comparisons(result)))


def _comparisons(result: Result) -> Iterable[str]:
    """The tuned decoder beside its nearest rival, and beside chance."""
    against, found = result.get("against"), result.get("comparison")
    if against:
        ratio = with_interval(against["ratio"], against["interval"], ".3f")
        yield f"Speed over {against['of']}: {ratio} ({against['confidence']:.0%} confidence)."
    if found and not found.get("bracketed", True):
        yield "Neither rate of random hand-off is near the speed of the tuned policy: no comparison with chance."
    elif found:
        difference = with_interval(found["difference"], found["interval"], ".3f")
        yield (
            f"Random hand-off at the speed of the tuned policy: {loss_name(result)} "
            f"{format_number(found['random_loss_at_same_speed'], '.3f')}; tuned minus random: {difference} "
            f"({found['confidence']:.0%} confidence)."
        )


def _certificate(found: Result | None) -> str:
    """The promise, what was tested for it in order, the losses by family, and the assumptions."""
    if not found:
        return ""
    candidates = [{"label": i + 1} | candidate for i, candidate in enumerate(found["candidates"])]
    families = [{"label": family["family"]} | family for family in found["families"]]
    return (
        paragraph(found["claim"])
        + faint([found["test"], f"a candidate passes at a p-value of at most {format_number(found['level'], '.4g')}"])
        + _table("candidate", candidates, CANDIDATE, [i == found["chosen"] for i in range(len(candidates))])
        + _table("family", families, FAMILY)
        + "".join(faint([text]) for text in found["assumptions"])
    )


def _replay_note(replay: Result) -> str:
    text = "Points are measured; dashed lines are predicted from the tuning prompts."
    speedup, loss = (number(replay.get(f"live_{what}_over_replayed")) for what in ("speedup", "loss"))
    if speedup is None:
        return text
    lost = "" if loss is None else f" and {loss:.2f} times its predicted loss"
    return f"{text} Live on these prompts, the tuned decoder had {speedup:.2f} times its predicted speedup{lost}."


def _front(result: Result, rows: int = 12) -> str:
    """Points of the predicted Pareto front, evenly spaced in its order, with the settings that reach them."""
    points = result.get("front", [])
    count = min(rows, len(points))
    picked = [points[i * (len(points) - 1) // max(1, count - 1)] for i in range(count)]
    rows = [point | {"label": ", ".join(charts.settings(point["params"]))} for point in picked]
    return _table("settings", rows, {"speedup": ("speedup", ".2f"), "loss": (loss_name(result), ".3f")})


def _search_note(result: Result) -> str:
    pruned = result.get("pruned", 0)
    more = f" {pruned} more were given up early: by then they were surely worse than the best." if pruned else ""
    return f"One point per trial, as predicted from the tuning prompts.{more}"


def _policy(result: Result) -> str:
    policy = result.get("policy")
    if not policy:
        return ""
    facts = [f"{key} {policy[key]}" for key in ("kind", "label") if policy.get(key) is not None]
    facts.append(f"threshold {format_number(policy.get('threshold'), '.4g')}")
    decoder = paragraph(f"The decoder as a whole: {result['decoder']}.") if result.get("decoder") else ""
    # A description says "escalate" of all decisions; which one it is, the method knows.
    decision = re.sub(r"escalate when | escalate$", "", str(policy.get("describe", "")))
    body = decoder + paragraph(f"{decision}.{_threshold_note(result)}") + faint(facts)
    weights = sorted((policy.get("weights") or {}).items(), key=lambda item: -abs(number(item[1]) or 0))
    if weights:
        rows = [{"label": name, "weight": weight} for name, weight in weights]
        return body + _table("feature", rows, {"weight": ("weight", "+.4g")})
    features = ", ".join(map(str, policy.get("features", [])))
    return body + (paragraph(f"features: {features}") if features else "")


def _calibration_note(result: Result) -> str:
    found = result.get("calibration")
    if not found:
        return ""
    brier, constant, error = (format_number(found[key], ".4f") for key in ("brier", "constant", "error"))
    return (
        f"On {found['rows']} positions of the tuning prompts: Brier score {brier} (of the best constant: {constant}), "
        f"mean distance from the diagonal {error}."
    )


def _costs(costs: dict[str, dict[str, float]]) -> str:
    widths = sorted({width for cost in costs.values() for width in cost}, key=float)
    rows = [{"label": name} | {w: 1000 * seconds for w, seconds in cost.items()} for name, cost in costs.items()]
    return _table("model", rows, {w: (f"{w} token{'s' * (float(w) != 1)}", ".2f") for w in widths})


def _cost_note(result: Result) -> str:
    text = "Milliseconds of one forward pass, by the number of tokens that it reads."
    ratio = number(result.get("live_over_table"))
    if ratio is None or 1 / DISTURBED <= ratio <= DISTURBED:
        return text
    return (
        f"{text} On the held-out prompts the large model took {ratio:.2f} times what this table says: the machine was "
        "busier at one of the two times, or much time passes outside forward passes. The predicted speeds and the "
        "draft length may be wrong."
    )


def _splits(splits: dict[str, Result]) -> str:
    keys = ("prompts", "groups", "hash")
    return grid(("split", *keys), [[name, *(str(s.get(key, DASH))[:16] for key in keys)] for name, s in splits.items()])


def _models(result: Result) -> str:
    keys = ("name", "tokenizer", "config", "weights")
    rows = [[str(model.get(key, DASH)) for key in keys] for model in result.get("models", [])]
    return grid(keys, rows) + faint(f"{key} {value}" for key, value in result.get("machine", {}).items())


def _samples(result: Result) -> str:
    samples = result.get("samples", [])
    writers = sorted({writer for sample in samples for _, writer, _ in sample["tokens"] if writer >= 0})
    names = [str(model.get("name", f"model {i}")) for i, model in enumerate(result.get("models", []))]
    names += [f"model {i}" for i in range(len(names), max(writers, default=-1) + 1)]
    tints = [f"{BETWEEN[(i - 1) % len(BETWEEN)]}33" for i in range(len(names))]  # light enough to read on
    if names:
        tints[0], tints[-1] = f"{COLOURS['small']}33", f"{COLOURS['large']}33"
    threshold = number((result.get("policy") or {}).get("threshold"))
    limit = "" if threshold is None else f", threshold {threshold:.3f}"
    key = [f'<span class="key" style="background:{tints[i]}">{escape(names[i])}</span>' for i in writers]
    texts = [
        f'<div class="sample"><div class="prompt">{escape(str(sample["prompt"]))}</div><div class="both">'
        f"{_answer('tuned decoder', ''.join(_token(*token, limit, names, tints) for token in sample['tokens']))}"
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
