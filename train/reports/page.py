"""The report of a run as one HTML page: a pure function of what result.json holds."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from decoding.cli.sampling import described, tuned_sampling
from policies.storage import atomic
from train.reports import charts
from train.reports.markup import faint, grid, page, paragraph, section
from train.reports.plane import COLOURS, plane
from train.reports.tables import (
    cells,
    format_number,
    grading_line,
    loss_name,
    thought_line,
    with_interval,
)

Result = dict[str, Any]
DISTURBED = 1.25  # factor by which live seconds may differ from the timing table before the report says so
MEASURED = (
    "The fastest row without a loss is the one to beat. Measured on the held-out prompts; in brackets 95 % intervals "
    "over prompts."
)
TIMED = " Losses and lengths are of all of them, written in batches; speeds of {}, timed {}."
PLANE = {
    "loss": "Further right is faster, and lower loses less. The tuned decoder is worth its distance below the line of "
    "random hand-off, where that is more than its bar.",
    "speedup": "Higher is faster, at no loss. A tuned stop is worth its distance above the line of constant lengths.",
}
"""What to see in the frontier, by what it has across the page's height."""
CALIBRATED = (
    "On the diagonal a risk means what it says; below it the policy is too anxious, and above it too bold. Only the "
    "order of risks decides who writes, so a curve that rises is good enough."
)
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
    sections = (
        ("Methods", _methods(result), _measured_note(result)),
        ("Certificate", _certificate(result.get("certificate")), ""),
        ("Frontier", charts.frontier(result), _frontier_note(result)),
        ("Predicted Pareto front", _front(result), FRONT),
        ("Search", charts.trials(result), _search_note(result)),
        ("Policy", _policy(result), ""),
        ("Calibration", *_calibration(result.get("calibration"))),
        ("Cost", _costs(result["cost"]), _cost_note(result["live_over_table"])),
        ("Splits", _splits(result["splits"]), "Related prompts form a group; no group is in two splits."),
        ("Plain regret", _table("method", result["methods"], {"plain_regret": ("nats per token", ".4g")}), PLAIN),
        ("Models and machine", _models(result), ""),
        ("Samples", _samples(result), f"{SAMPLES} From the threshold on, {result['threshold_note']}"),
    )
    atomic.write(path, page(result["name"], [_header(result), *(section(*parts) for parts in sections)]).encode())


def _header(result: Result) -> str:
    goal = [f"{key.replace('_', ' ')} {value:g}" for key, value in result["goal"].items()]
    goal += [described(tuned_sampling(result))] if result.get("sampling") else []
    goal += [f"batch size {batch}"] if (batch := result.get("batch_size", 1)) > 1 else []
    verdict = f'<p class="verdict">{escape(result["verdict"])}</p>'
    thought = thought_line(result)
    said = verdict + (paragraph(thought) if thought else "")
    return f"<h1>{escape(result['name'])}</h1>{said}{faint([result['created'], *goal])}"


def _table(first: str, rows: Sequence[Result], columns: dict, marked: Sequence[bool] = ()) -> str:
    """The ``columns`` of ``rows`` that have a number; empty if none has."""
    head, *lines = cells({"methods": rows}, columns)
    return grid((first, *head[1:]), lines, marked) if head[1:] else ""


def _methods(result: Result) -> str:
    head, *rows = cells(result)
    table = grid(head, rows, [method["key"] == "tuned" for method in result["methods"]])
    return table + "".join(map(paragraph, filter(None, (*_comparisons(result), grading_line(result)))))


def _measured_note(result: Result) -> str:
    batch = result.get("batch_size", 1)
    how = "one by one" if batch == 1 else f"in batches of {batch}, in which a text that ends is replaced by the next"
    return MEASURED + (TIMED.format(result["timed"], how) if result.get("timed") else "")


def _comparisons(result: Result) -> Iterable[str]:
    """The tuned decoder beside its nearest rival, and beside chance."""
    against, found = result.get("against"), result.get("comparison")
    if against:
        ratio = with_interval(against["ratio"], against["interval"], ".3f")
        yield f"Speed over {against['of']}: {ratio} ({against['confidence']:.0%} confidence)."
    if found and not found["bracketed"]:
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
    candidates = [{"label": str(i + 1)} | candidate for i, candidate in enumerate(found["candidates"])]
    families = [{"label": family["family"]} | family for family in found["families"]]
    return (
        paragraph(found["claim"])
        + faint([found["test"], f"a candidate passes at a p-value of at most {format_number(found['level'], '.4g')}"])
        + _table("candidate", candidates, CANDIDATE, [i == found["chosen"] for i in range(len(candidates))])
        + _table("family", families, FAMILY)
        + "".join(faint([text]) for text in found["assumptions"])
    )


def _frontier_note(result: Result) -> str:
    """What to see in the frontier, and how well its dashed lines predicted what was then measured."""
    replay = result["replay"]
    speedup, loss = replay["live_speedup_over_replayed"], replay["live_loss_over_replayed"]
    lost = "" if loss is None else f" and {loss:.2f} times its predicted loss"
    return (
        f"{PLANE[plane(result)[1]]} Points are measured, with 95 % intervals; dashed lines are predicted from the "
        f"tuning prompts. Live on these prompts, the tuned decoder had {speedup:.2f} times its predicted speedup{lost}."
    )


def _front(result: Result, rows: int = 12) -> str:
    """Points of the predicted Pareto front, evenly spaced in its order, with the settings that reach them."""
    points, count = result["front"], min(rows, len(result["front"]))
    picked = [points[i * (len(points) - 1) // max(1, count - 1)] for i in range(count)]
    rows = [point | {"label": ", ".join(charts.settings(point["params"]))} for point in picked]
    return _table("settings", rows, {"speedup": ("speedup", ".2f"), "loss": (loss_name(result), ".3f")})


def _search_note(result: Result) -> str:
    pruned = result["pruned"]
    more = f" {pruned} more were given up early: by then they were surely worse than the best." if pruned else ""
    return (
        "One point per trial, as predicted from the tuning prompts; the star was chosen. Other settings close to it "
        f"say that settings matter little here; point at one to read them.{more}"
    )


def _policy(result: Result) -> str:
    policy = result["policy"]
    threshold, features = format_number(policy["threshold"], ".4g"), ", ".join(policy["features"])
    decoder = paragraph(f"The decoder as a whole: {result['decoder']}.") if result.get("decoder") else ""
    # A description says "escalate" of all decisions; which one it is, the method knows.
    decision = re.sub(r"escalate when | escalate$", "", policy["describe"])
    body = decoder + paragraph(f"{decision}. From the threshold on, {result['threshold_note']}")
    body += faint([f"kind {policy['kind']}", f"label {policy['label']}", f"threshold {threshold}"])
    weights = sorted((policy["weights"] or {}).items(), key=lambda item: -abs(item[1]))
    if weights:
        rows = [{"label": name, "weight": weight} for name, weight in weights]
        return body + _table("feature", rows, {"weight": ("weight", "+.4g")})
    return body + (paragraph(f"features: {features}") if features else "")


def _calibration(found: Result | None) -> tuple[str, str]:
    if not found:
        return "", ""
    brier, constant, error = (format_number(found[key], ".4f") for key in ("brier", "constant", "error"))
    return charts.calibration(found["bins"]), (
        f"{CALIBRATED} On {found['rows']} positions of the tuning prompts: Brier score {brier} (of the best constant: "
        f"{constant}), mean distance from the diagonal {error}."
    )


def _costs(costs: dict[str, dict[str, float]]) -> str:
    widths = sorted({width for cost in costs.values() for width in cost}, key=float)
    rows = [{"label": name} | {w: 1000 * seconds for w, seconds in cost.items()} for name, cost in costs.items()]
    return _table("model", rows, {w: (f"{w} token{'s' * (float(w) != 1)}", ".2f") for w in widths})


def _cost_note(ratio: float) -> str:
    text = "Milliseconds of one forward pass, by the number of tokens that it reads."
    if 1 / DISTURBED <= ratio <= DISTURBED:
        return text
    return (
        f"{text} On the held-out prompts the large model took {ratio:.2f} times what this table says: the machine was "
        "busier at one of the two times, or much time passes outside forward passes. The predicted speeds and the "
        "draft length may be wrong."
    )


def _splits(splits: dict[str, Result]) -> str:
    keys = ("prompts", "groups", "hash")
    return grid(("split", *keys), [[name, *(str(s[key])[:16] for key in keys)] for name, s in splits.items()])


def _models(result: Result) -> str:
    keys = ("name", "tokenizer", "config", "weights")
    rows = [[model[key] for key in keys] for model in result["models"]]
    return grid(keys, rows) + faint(f"{key} {value}" for key, value in result["machine"].items())


def _samples(result: Result) -> str:
    samples = result["samples"]
    writers = sorted({writer for sample in samples for _, writer, _ in sample["tokens"]})
    names = [model["name"] for model in result["models"]]
    tints = [f"{COLOURS[model]}33" for model in ("small", "large")]  # light enough to read on
    limit = f", threshold {result['policy']['threshold']:.3f}"
    key = [f'<span class="key" style="background:{tints[i]}">{escape(names[i])}</span>' for i in writers]
    texts = [
        f'<div class="sample"><div class="prompt">{escape(sample["prompt"])}</div><div class="both">'
        f"{_answer('tuned decoder', ''.join(_token(*token, limit, names, tints) for token in sample['tokens']))}"
        f"{_answer('large model alone', escape(sample['large']))}</div></div>"
        for sample in samples
    ]
    return f"<p>{''.join(key)}</p>{''.join(texts)}" if texts else ""


def _answer(title: str, body: str) -> str:
    return f'<div><div class="faint">{title}</div><div class="text">{body}</div></div>' if body else ""


def _token(text: str, writer: int, risk: float | None, limit: str, names: Sequence[str], tints: Sequence[str]) -> str:
    title = names[writer] if risk is None else f"{names[writer]}, risk {risk:.3f}{limit}"
    return f'<span style="background:{tints[writer]}" title="{escape(title)}">{escape(text)}</span>'
