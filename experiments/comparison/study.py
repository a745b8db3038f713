"""A comparison of methods step by step: check, write, time or price, describe and show."""

from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from decoding import LM
from decoding.cli.options import use
from decoding.cost.costs import ModelCosts
from experiments.comparison.methods import SUFFIX, Method, MethodError, build, parse
from experiments.comparison.plots import HOW, WORTH, draw, how_timed, write_html
from experiments.comparison.settings import ComparisonSettings
from experiments.comparison.summary import Measured, summarize
from experiments.comparison.texts import mean_text, text_columns, write_texts
from experiments.shared.energy import counter
from train.common import atomic, run_folder
from train.common.cli import at_least, checking
from train.common.drawing import check_drawing, texts_a_prompt
from train.common.machine import machine
from train.common.preparation import (
    crew_of,
    drawn_by,
    load_pair,
    output_folder,
    sampled_baseline,
    timing_table,
    workers_asked,
)
from train.common.progress import say
from train.data.prompts import Prompt, prompts_for
from train.evaluation import live
from train.quality.graders.families import grade
from train.quality.graders.grader import Grader, load_grader
from train.quality.metric import QualityMetric
from train.replay.pricing import draft_seconds, handoff_seconds
from train.reports.terminal import print_table
from train.workers.crew import Crew
from train.workers.pair import Pair


@dataclass
class Study:
    """A checked comparison, with everything loaded."""

    config: ComparisonSettings
    folder: Path
    methods: dict[str, Method]
    labels: dict[str, str]
    decoders: dict[str, object]
    small: LM
    large: LM
    prompts: list[Prompt]
    baseline: str
    grader: Grader | None  # of all prompts; None: each family's
    metric: QualityMetric
    crew: Crew


def compare(config: ComparisonSettings, texts: tuple[str, ...]) -> tuple[dict, Measured]:
    """Measure the methods ``texts``, write and print the result. Raises InputError before any work is done."""
    with checking():
        study = prepare(config, texts)
    with closing(study.crew):
        measured = measure(study)
    result, folder = describe(study, measured), study.folder
    atomic.write_json(folder / "result.json", result)
    draw(result, folder / "frontier.png")
    write_html(result, folder / "frontier.html")
    print_table(result, WORTH)
    print_table(result, HOW)
    say(f"{how_timed(result)}; minus baseline: {result['baseline']}")
    say(f"wrote {folder}/result.json, frontier.png, frontier.html")
    return result, measured


def prepare(config: ComparisonSettings, texts: tuple[str, ...]) -> Study:
    """Check everything and load models and prompts. Raises ValueError or OSError, one sentence, for wrong input."""
    methods, labels = parse_methods(texts)
    baseline = str(parse(config.baseline))
    if baseline not in methods:
        raise MethodError(f"--baseline {config.baseline} is not among the methods; add it to them")
    folder = output_folder(config)
    otherwise = f"use another --name or delete {folder}"
    date = run_folder.recorded_date(folder / "run.json", otherwise)
    config = replace(config, reading=config.reading.dated(date))
    at_least(config, {"limit": 1, "timed": 0, "batch": 1, "batch_size": 1, "max_new_tokens": 1, "seed": 0})
    config.dtypes.check()
    check_drawing(config)
    if not config.drawing.greedy:
        refuse_own_sampling(methods, labels)
    config = replace(config, dtypes=config.dtypes.resolved(run_folder.recorded_dtypes(folder / "run.json", otherwise)))
    use(config.device, config.threads)
    workers = workers_asked(config, folder)
    small, large = load_pair(config, config.drawing)
    config = drawn_by(large, config)
    config = replace(config, dtypes=config.dtypes.resolved((small.dtype, large.dtype)))
    prompts = prompts_for(config, [small, large], config.limit)
    grader = None if config.grader is None else load_grader(config.grader)
    if grader is not None:
        grader.check(prompts)
    for prompt in {p.family: p for p in prompts}.values() if grader is None else ():
        grade(prompt, "")  # fails now, not after an hour of texts, if a grader lacks a package
    decoders = {key: build(method, [small, large]) for key, method in methods.items()}
    kept = ("small", "large", "prompts", "max_new_tokens", "ignore_generation_config", "device", "backend", "seed")
    settings = {key: str(value) for key, value in asdict(config).items() if key in kept}
    settings |= asdict(config.reading) | asdict(config.dtypes)
    if not config.drawing.greedy:
        settings |= asdict(config.drawing) | {"seeds": texts_a_prompt(config)}
    run = {"settings": settings, "models": [small.identity(), large.identity()]}
    run_folder.ensure_same_run(folder / "run.json", run, config, otherwise)
    metric = QualityMetric(large, budget=config.max_new_tokens, sampled=sampled_baseline(config, large))
    crew = crew_of(config, workers, folder)
    return Study(config, folder, methods, labels, decoders, small, large, prompts, baseline, grader, metric, crew)


def refuse_own_sampling(methods: dict[str, Method], labels: dict[str, str]) -> None:
    """MethodError for a method that does not draw as --temperature says."""
    for key, method in methods.items():
        if method.sampling is not None:
            raise MethodError(f"{labels[key]!r} draws in its own way; leave out {SUFFIX} or --temperature")
        if method.name == "beam":
            raise MethodError("beam search does not draw tokens; leave out beam or --temperature")


def parse_methods(texts: tuple[str, ...]) -> tuple[dict[str, Method], dict[str, str]]:
    """(methods, their names as given) by canonical text; the large model alone is always there, and first."""
    methods, labels = {}, {}
    for text in ("large", *(text for text in texts if text != "large")):
        method = parse(text)
        key = str(method)
        if key in methods:
            raise MethodError(f"{labels[key]!r} and {text!r} are the same method; give one of them")
        methods[key], labels[key] = method, text
    return methods, labels


def measure(study: Study) -> Measured:
    """Write the texts of all methods, measure their losses, and time or price them."""
    rows, many = write_all(study), texts_a_prompt(study.config)
    columns = partial(text_columns, study.large, study.config.max_new_tokens, texts=many)
    texts = {key: columns(some, rows["large"], grade_answers(study, some)) for key, some in rows.items()}
    if study.config.timed:
        timed = study.prompts[: study.config.timed]  # prompts take turns by family
        clock = time_methods(study, timed)
    else:
        timed, clock = study.prompts, price_methods(study, rows)
    return Measured(study.methods, study.prompts, texts, timed, clock, study.baseline)


def write_all(study: Study) -> dict[str, list[dict]]:
    """Rows of every method (see ``texts.write_texts``), one text of all prompts after the other.

    The large model comes first, as the others' reference.
    """
    rows, references = {}, {}
    pair, numbers = Pair([study.small, study.large], study.metric), range(texts_a_prompt(study.config))
    for key, method in study.methods.items():
        how = study.config, method, study.prompts, study.folder, pair, study.crew, references
        rows[key] = [row for number in numbers for row in write_texts(*how, number)]
        if key == "large":
            references = {row["id"]: row["answer"] for row in rows[key]}
    study.crew.clear(study.folder)
    return rows


def grade_answers(study: Study, rows: list[dict]) -> list[float | None]:
    """The score of each answer in its task, None where the task has no grader."""
    decode = study.large.tokenizer.decode
    texts = [decode(row["answer"], skip_special_tokens=True) for row in rows]
    score = grade if study.grader is None else study.grader
    prompts = study.prompts * texts_a_prompt(study.config)
    return [score(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]


def time_methods(study: Study, timed: list[Prompt]) -> dict:
    """Measured seconds and tokens by method and prompt, one text at a time, methods in turns."""
    setting = " ".join(method.identity() for method in study.methods.values())
    setting, path = f"{setting}, {torch.get_num_threads()} threads", study.folder / "timed.jsonl"
    how = study.config.max_new_tokens, study.metric, path, "timing", setting
    more = {"joules": counter(study.large.device), "sampling": study.config.drawing.sampling()}
    more |= {"batch": study.config.batch_size}
    return live.measure(study.decoders, timed, *how, **more)


def price_methods(study: Study, rows: dict[str, list[dict]]) -> dict:
    """Priced seconds and tokens by method and prompt, from the calls that each text took."""
    cost = timing_table(study.folder, [study.small, study.large], study.config.batch_size)
    found = {}
    many = texts_a_prompt(study.config)
    for key, some in rows.items():
        how, pairs = (study.methods[key], study.decoders[key], cost), zip(study.prompts * many, some, strict=True)
        figures = zip(*[(price(len(p.ids), row, *how), len(row["answer"])) for p, row in pairs], strict=True)
        found[key] = dict(zip(("seconds", "tokens"), (mean_text(some, many) for some in figures), strict=True))
    return found


def price(prompt: int, row: dict, method: Method, decoder, cost: ModelCosts) -> float:
    """Seconds of the text ``row`` (see ``texts.write_texts``) after ``prompt`` tokens, written on its own."""
    role, tokens = method.kind.role, len(row["answer"])
    if role == "handoff":
        return handoff_seconds(prompt, row["writers"], cost)
    if role == "draft":
        return draft_seconds(getattr(decoder, "decoder", decoder), prompt, row, cost)
    model = 0 if role == "small" else -1
    return float(cost.text(model, prompt, tokens, method.options.get("width", 1)))


def describe(study: Study, measured: Measured) -> dict:
    """The content of result.json."""
    config = study.config
    return {
        "name": config.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(config.device, [study.small.dtype, study.large.dtype]),
        "models": [study.small.identity(), study.large.identity()],
        "prompts": len(study.prompts),
        "families": dict(sorted(Counter(p.family for p in study.prompts).items())),
        "timed": len(measured.timed) if config.timed else 0,
        "max_new_tokens": config.max_new_tokens,
        "sampling": None if config.drawing.greedy else asdict(config.drawing.sampling()),
        "texts_a_prompt": texts_a_prompt(config),
        "batch_size": config.batch_size,
        "baseline": study.labels[study.baseline],
        "plane": ["speedup", "loss" if study.grader is None else "score"],
        "methods": [summarize(measured, key, label) for key, label in study.labels.items()],
    }
