"""A whole comparison: measured, written to its folder and printed."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from experiments.comparison.plots import HOW, WORTH, draw, how_timed, write_html
from experiments.comparison.settings import ComparisonSettings
from experiments.comparison.study import describe, measure, prepare
from experiments.comparison.summary import Measured
from train.common import atomic
from train.common.cli import checking
from train.reports.tables import print_table


def compare(config: ComparisonSettings, texts: tuple[str, ...]) -> tuple[dict, Measured]:
    """Measure the methods ``texts`` and write the result. Raises InputError before any work is done."""
    with checking():
        study = prepare(config, texts)
    measured = measure(study)
    result = describe(study, measured)
    atomic.write_json(study.folder / "result.json", result)
    draw(result, study.folder / "frontier.png")
    write_html(result, study.folder / "frontier.html")
    show(result, study.folder)
    return result, measured


def show(result: dict, folder: Path) -> None:
    """Print two tables: quality and speed of each method, and how it reaches them."""
    console = Console()
    if not console.is_terminal:  # a file need not be narrow
        console = Console(width=180)
    print_table(result, console, WORTH)
    print_table(result, console, HOW)
    console.print(f"{how_timed(result)}; intervals: 95 % over prompts; minus baseline: {result['baseline']}")
    console.print(f"wrote {folder}/result.json, frontier.png, frontier.html")
