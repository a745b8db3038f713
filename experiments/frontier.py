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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.methods import Method, MethodError, build, catalogue, parse
from train.command import attempt, checking

if TYPE_CHECKING:
    from decoding import LM
    from experiments.summary import Measured
    from train.prompts import Prompt

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


@dataclass
class Study:
    """Everything that has been checked and loaded."""

    config: Setup
    folder: Path
    methods: dict[str, Method]
    labels: dict[str, str]
    decoders: dict[str, object]
    small: LM
    large: LM
    prompts: list[Prompt]
    baseline: str


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when it is done, 2 after one sentence about what was wrong with the input."""
    config = tyro.cli(Frontier, args=argv, description=f"{__doc__}\n{catalogue()}")
    return attempt("frontier", lambda: run(config, config.methods), config.output / config.name)


def run(config: Setup, texts: tuple[str, ...]) -> tuple[dict, Measured]:
    """Measure the methods ``texts`` and write what was found. Raises InputError before any work is done."""
    from experiments.plots import draw, write_html
    from train import atomic

    with checking():
        study = prepare(config, texts)
    measured = measure(study)
    result = describe(study, measured)
    atomic.write_json(study.folder / "result.json", result)
    draw(result, study.folder / "frontier.png")
    write_html(result, study.folder / "frontier.html")
    show(result, study.folder)
    return result, measured


def prepare(config: Setup, texts: tuple[str, ...]) -> Study:
    """Check everything, and load models and prompts."""
    from train.prepare import check_numbers, load_pair, output_folder, remember
    from train.prompts import load_prompts

    methods, labels = chosen(texts)
    baseline = str(parse(config.baseline))
    if baseline not in methods:
        raise MethodError(f"--baseline {config.baseline} is not among the methods; add it to them")
    folder = output_folder(config)
    check_numbers(config, {"limit": 1, "timed": 0, "batch": 1, "max_new_tokens": 1, "threads": 1, "seed": 0})
    small, large = load_pair(config)
    longest = min(small.context, large.context) - config.max_new_tokens
    prompts = load_prompts(config.prompts, large.tokenizer, config.limit, max_tokens=longest)
    decoders = {key: build(method, [small, large]) for key, method in methods.items()}
    kept = ("small", "large", "prompts", "max_new_tokens", "device", "dtype", "seed")
    settings = {key: value for key, value in asdict(config).items() if key in kept}
    remember(folder, settings, [small.identity(), large.identity()])
    return Study(config, folder, methods, labels, decoders, small, large, prompts, baseline)


def chosen(texts: tuple[str, ...]) -> tuple[dict[str, Method], dict[str, str]]:
    """Methods and what the user called them, by canonical text; the large model alone comes first, asked for or not."""
    methods, labels = {}, {}
    for text in ("large", *(text for text in texts if text != "large")):
        method = parse(text)
        key = str(method)
        if key in methods:
            raise MethodError(f"{labels[key]!r} and {text!r} are the same method; give one of them")
        methods[key], labels[key] = method, text
    return methods, labels


def measure(study: Study) -> Measured:
    """Texts of all methods, judged, and their times."""
    from experiments.summary import Measured
    from experiments.texts import columns

    rows = written(study)
    references = rows["large"]
    texts = {key: columns(some, references, graded(study, some)) for key, some in rows.items()}
    if study.config.timed:
        timed = study.prompts[: study.config.timed]  # prompts take turns by family
        return Measured(study.methods, study.prompts, texts, timed, clocked(study, timed), study.baseline)
    return Measured(study.methods, study.prompts, texts, study.prompts, by_price(study, rows), study.baseline)


def written(study: Study) -> dict[str, list[dict]]:
    """Rows of every method (see ``experiments.texts``), those of the large model first: the others' references."""
    from experiments.texts import file_name, judged, write_texts

    config, rows, references = study.config, {}, {}
    judge = lambda prompt, answer: judged(study.large, prompt, answer, references.get(prompt.id, answer))  # noqa: E731
    for key, method in study.methods.items():
        path = study.folder / "texts" / file_name(method)
        path.parent.mkdir(exist_ok=True)
        how = config.max_new_tokens, config.batch, config.seed, judge
        rows[key] = write_texts(method, study.decoders[key], study.prompts, path, *how)
        if key == "large":
            references = {row["id"]: row["answer"] for row in rows[key]}
    return rows


def graded(study: Study, rows: list[dict]) -> list[float | None]:
    """The score of each answer in its task, None where the task has no grader."""
    try:
        from experiments.graders import grade
    except ModuleNotFoundError:
        return [None] * len(rows)
    decode = study.large.tokenizer.decode
    texts = [decode(row["answer"], skip_special_tokens=True) for row in rows]
    return [grade(prompt, text) for prompt, text in zip(study.prompts, texts, strict=True)]


def clocked(study: Study, timed: list[Prompt]) -> dict:
    """Seconds and tokens per method and prompt, one text at a time, methods in turn."""
    import torch

    from experiments.energy import counter
    from train import live

    setting = " ".join(method.identity() for method in study.methods.values())
    return live.measure(
        study.decoders,
        timed,
        study.config.max_new_tokens,
        study.large,
        study.folder / "timed.jsonl",
        "timing",
        setting=f"{setting}, {torch.get_num_threads()} threads",
        joules=counter(study.large.device),
    )


def by_price(study: Study, rows: dict[str, list[dict]]) -> dict:
    """The same for all prompts, by the calls that the texts took."""
    import numpy as np

    from experiments.pricing import priced
    from train.prepare import timing_table

    cost = timing_table(study.folder, study.small, study.large)
    return {
        key: {
            "seconds": priced(study.methods[key], study.decoders[key], study.prompts, some, cost),
            "tokens": np.array([len(row["answer"]) for row in some], float),
        }
        for key, some in rows.items()
    }


def describe(study: Study, measured: Measured) -> dict:
    """What goes into result.json."""
    from collections import Counter
    from datetime import UTC, datetime

    from experiments.summary import summary
    from train.machine import machine

    config = study.config
    return {
        "name": config.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(config),
        "models": [study.small.identity(), study.large.identity()],
        "prompts": len(study.prompts),
        "families": dict(sorted(Counter(p.family for p in study.prompts).items())),
        "timed": len(measured.timed) if config.timed else 0,
        "max_new_tokens": config.max_new_tokens,
        "baseline": study.labels[study.baseline],
        "methods": [summary(measured, key, label) for key, label in study.labels.items()],
    }


def show(result: dict, folder: Path) -> None:
    """Two tables: what a method is worth, and how it does it."""
    from rich.console import Console

    from experiments.plots import HOW, WORTH, how_timed
    from train.tables import print_table

    console = Console()
    if not console.is_terminal:  # in a file nothing need be narrow
        console = Console(width=180)
    print_table(result, console, WORTH)
    print_table(result, console, HOW)
    console.print(f"{how_timed(result)}; intervals: 95 % over prompts; minus baseline: {result['baseline']}")
    console.print(f"wrote {folder}/result.json, frontier.png, frontier.html")


if __name__ == "__main__":
    sys.exit(main())
