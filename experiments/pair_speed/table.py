"""Figures of each row from its lines, and their table."""

from collections.abc import Sequence

import numpy as np

from experiments.engine_speed.summary import paired_ratio, shown_ratio
from train.common.progress import say
from train.reports.terminal import print_rows


def seconds_per_token(lines: Sequence[dict]) -> dict[str, float]:
    """By prompt the median over passes."""
    times: dict[str, list[float]] = {}
    for line in lines:
        times.setdefault(line["prompt"], []).append(line["seconds"] / line["tokens"])
    return {prompt: float(np.median(some)) for prompt, some in times.items()}


def ratio(base: dict[str, float], own: dict[str, float]) -> dict | None:
    """Speed relative to ``base``, paired over the prompts that both answered; None where there are none."""
    both = [prompt for prompt in own if prompt in base]
    return paired_ratio(*(np.array([times[p] for p in both]) for times in (base, own))) if both else None


def figures(lines: Sequence[dict], base: dict | None, texts: dict, own: dict | None, cap: int, drafts: bool) -> dict:
    """Figures of one row; ``texts`` are those of its lines, ``own`` those of the large model alone, by prompt."""
    times, tokens = seconds_per_token(lines), sum(line["tokens"] for line in lines)
    known = [line["target_calls"] for line in lines]
    calls = None if None in known else sum(known)  # OpenVINO does not tell
    passes: dict[int, list[float]] = {}
    for line in lines:
        passes.setdefault(line["number"], []).append(line["seconds"] / line["tokens"])
    each = [1 / float(np.median(some)) for some in passes.values()]
    same = [texts[prompt] == own[prompt] for prompt in texts if prompt in own] if own else []
    return {
        "prompts": len(times),
        "tokens_per_second": 1 / float(np.median(list(times.values()))),
        "by_pass": each,
        "ratio": None if base is None else ratio(base, times),
        "target_calls": None if calls is None else calls / tokens,
        "kept": tokens / calls - 1 if drafts and calls else None,
        "same": float(np.mean(same)) if same else None,
        "at_cap": float(np.mean([line["tokens"] >= cap for line in lines])),
        "peak_bytes": max(line["peak_bytes"] for line in lines),
        "load_seconds": float(np.median([line["load_seconds"] for line in lines])),
        "dtype": lines[0].get("dtype"),
        "loss": None,
    }


COLUMNS = {
    "tokens/s": lambda row: f"{row['tokens_per_second']:.2f}",
    "ratio": lambda row: shown_ratio(row["ratio"]),
    "target calls a token": lambda row: "" if row["target_calls"] is None else f"{row['target_calls']:.3f}",
    "kept a round": lambda row: "" if row["kept"] is None else f"{row['kept']:.2f}",
    "guarded regret": lambda row: "" if row["loss"] is None else f"{row['loss']:.4f}",
    "same text": lambda row: "" if row["same"] is None else f"{row['same']:.0%}",
    "at cap": lambda row: f"{row['at_cap']:.0%}",
    "peak GiB": lambda row: f"{row['peak_bytes'] / 2**30:.2f}",
    "load s": lambda row: f"{row['load_seconds']:.1f}",
    "prompts": lambda row: str(row["prompts"]),
}
"""Titles and texts of the columns."""


def show(result: dict) -> None:
    """Print the table, what is missing in it and why, and how far the machine drifted."""
    rows = [(name, *(text(row) for text in COLUMNS.values())) for name, row in result["rows"].items()]
    title = f"{result['prompts']} prompts; ratio to {result['baseline']}, medians of paired prompts, 95 % intervals"
    if rows:
        print_rows(("row", *COLUMNS), rows, title)
    for name, why in result["left_out"].items():
        say(f"{name} has no figures: {why}", markup=False)
    if result["drift"] is not None:
        drift = shown_ratio(result["drift"])
        say(f"{result['baseline']} again at the end, on its first prompts: {drift} times its speed before")
