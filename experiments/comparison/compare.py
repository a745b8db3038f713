"""A whole comparison: measured, written to its folder and printed."""

from __future__ import annotations

from pathlib import Path

from experiments.comparison.plots import HOW, WORTH, draw, how_timed, write_html
from experiments.comparison.settings import ComparisonSettings
from experiments.comparison.study import describe, measure, prepare
from experiments.comparison.summary import Measured
from train.common import atomic
from train.common.cli import checking
from train.common.progress import say
from train.reports.terminal import print_table


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
    print_table(result, WORTH)
    print_table(result, HOW)
    say(f"{how_timed(result)}; minus baseline: {result['baseline']}")
    say(f"wrote {folder}/result.json, frontier.png, frontier.html")
