"""Quality against speed of any set of methods, on the same prompts, in one run.

    python experiments/frontier.py small speculative:length=2 mtad:tau=0.3 typical@sampling --limit 40 --timed 10
    python experiments/frontier.py random:rate=0.5 policy:runs/default/policy.json --timed 0 --name hand-off

Quality: every method answers --limit prompts, in batches, and its texts are judged against the large model's own
greedy ones (guarded regret: 0 is that text, 1 is worst), with intervals over prompts. Speed: the methods take turns on
--timed of these prompts, one text at a time; with --timed 0 no clock is asked and time is priced from the calls that
each text took, at a timing table of both models. The large model alone is always measured too.

The output folder holds the texts, so that a run that was stopped goes on, and a method that is added later writes only
its own (but all are timed again: a speed is only worth something beside the others').

Methods, with their defaults:
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.comparison.methods import catalogue
from train.common.cli import attempt, checking

if TYPE_CHECKING:
    from experiments.comparison.summary import Measured

DEFAULT = (
    "small",
    "random:rate=0.66",
    "random:rate=0.39",
    "speculative:length=1",
    "speculative:length=2",
    "speculative:length=4",
    "promptlookup",
    "lenient",
    "divergence",
    "cascade",
    "fixed:verify=raw",
    "mtad",
    "mmtad",
    "bild",
    "beam",
)


@dataclass
class Setup:
    """What every measurement of methods has to know."""

    limit: int = 100
    """prompts whose answers are judged, spread over their families"""
    timed: int = 25
    """of these, how many are timed one by one; 0: time is priced from calls"""
    batch: int = 16
    """prompts that are answered together where nothing is timed"""
    max_new_tokens: int = 64
    baseline: str = "large"
    """the method from which the others' guarded regret is subtracted, prompt by prompt"""
    small: str | None = None
    """folder, hub id or .gguf of the small model (default: the drafter in the repository)"""
    large: str | None = None
    """folder, hub id or .gguf of the large model (default: SmolLM2-135M-Instruct)"""
    prompts: str | None = None
    """.jsonl with `prompt` or `messages`, .txt with a prompt a line, or a `datasets` name (default: embedded)"""
    name: str = "default"
    """name of the run"""
    output: Path = Path("runs/frontier")
    """results go to OUTPUT/NAME: result.json, frontier.png, frontier.html, the texts and the timings"""
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None
    """CPU threads (default: torch's choice)"""
    seed: int = 0


@dataclass
class Frontier(Setup):
    """Quality against speed of any set of methods."""

    methods: Annotated[tuple[str, ...], tyro.conf.Positional] = DEFAULT
    """methods, as below"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when it is done, 2 after one sentence about what was wrong with the input."""
    config = tyro.cli(Frontier, args=argv, description=f"{__doc__}\n{catalogue()}")
    return attempt("frontier", lambda: run(config, config.methods), config.output / config.name)


def run(config: Setup, texts: tuple[str, ...]) -> tuple[dict, Measured]:
    """Measure the methods ``texts`` and write what was found. Raises InputError before any work is done."""
    from experiments.comparison.plots import draw, write_html
    from experiments.comparison.study import describe, measure, prepare
    from train.common import atomic

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
    """Two tables: what a method is worth, and how it does it."""
    from rich.console import Console

    from experiments.comparison.plots import HOW, WORTH, how_timed
    from train.reports.tables import print_table

    console = Console()
    if not console.is_terminal:  # in a file nothing need be narrow
        console = Console(width=180)
    print_table(result, console, WORTH)
    print_table(result, console, HOW)
    console.print(f"{how_timed(result)}; intervals: 95 % over prompts; minus baseline: {result['baseline']}")
    console.print(f"wrote {folder}/result.json, frontier.png, frontier.html")


if __name__ == "__main__":
    sys.exit(main())
