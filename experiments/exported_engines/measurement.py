"""The measurement of ``experiments/exported.py``: engines in turns, every row kept, and a summary."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from decoding.models.defaults import DRAFTER, load_model, target_source
from experiments.engine_speed.summary import paired_ratio, seconds_per_token
from experiments.engines_under_test.openvino_engine import OpenVINO, convert
from policies.export.checking import check
from train.baselines.xllamacpp_server import XllamacppServer
from train.common import atomic, run_folder
from train.common.cli import at_least, checking
from train.data.prompts import Prompt, load_prompts
from train.data.splits import split_hash
from train.reports.tables import with_interval
from train.reports.terminal import print_rows

WAYS = ("alone", "default", "exported")
DEFAULT_LENGTH = 3
"""llama.cpp's own ``--spec-draft-n-max``; its ``p_min`` is 0."""


def run(config) -> dict:
    """Measure what is not measured yet and write the result. Raises InputError before any work is done."""
    with checking():
        settings = read_folders(config)
        small, large = models = find_ggufs(config)
        prompts, tokenizer = prepare(config)
        refuse_other_setting(config, settings, models)
    context = max(len(p.ids) for p in prompts) + config.max_new_tokens + 64
    ways = {}
    for engine, exported in settings.items():
        built = ENGINES[engine].build(exported, small, large, tokenizer, context, config.output)
        ways |= {f"{engine} {way}": answer for way, answer in zip(WAYS, built, strict=True)}
    rows = measure(config, ways, prompts)
    result = {"settings": settings, "prompts": len(prompts)}
    result["engines"] = {engine: summarize(rows, engine) for engine in settings}
    atomic.write_json(config.output / "result.json", result)
    show(result)
    return result


def read_folders(config) -> dict[str, dict]:
    """The exported settings of each folder, by target. ValueError for folders that cannot be measured."""
    at_least(config, dict.fromkeys(("limit", "max_new_tokens", "repeats", "threads"), 1))
    settings = {}
    for folder in config.folders:
        target = check(folder)["target"]
        if target not in ENGINES or target in settings:
            raise ValueError(f"{folder} is an export to {target}; give at most one of each: {', '.join(ENGINES)}")
        if importlib.util.find_spec(ENGINES[target].module) is None:
            raise ValueError(f"{folder} is for {target}, which is not installed; pip install {ENGINES[target].package}")
        settings[target] = json.loads((folder / ENGINES[target].file).read_bytes())
    if not settings:
        raise ValueError("give at least one folder that python -m policies.export wrote")
    return settings


def find_ggufs(config) -> tuple[str, str]:
    """(small, large) files: both engines read them themselves. ValueError for anything that is no file."""
    small = str(DRAFTER) if config.small is None else config.small
    large = target_source() if config.large is None else config.large
    for file in (small, large):
        if not file.endswith(".gguf") or not Path(file).is_file():
            raise ValueError(f"{file} is no .gguf file, which these engines need")
    return small, large


def prepare(config) -> tuple[list[Prompt], object]:
    """(prompts, the tokenizer of both models), which the small model is loaded for: it is quick to load."""
    import torch

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    small = load_model("small", config.small)
    room = small.context - config.max_new_tokens
    return load_prompts(config.prompts, small.tokenizer, config.limit, room), small.tokenizer


def refuse_other_setting(config, settings: dict, models: tuple[str, str]) -> None:
    """ValueError when the folder holds rows of another setting, with which these would be mixed."""
    import torch

    now = {
        "told": settings,
        "models": list(models),
        "max_new_tokens": config.max_new_tokens,
        "engines": {ENGINES[name].package: version(ENGINES[name].package) for name in settings},
        "threads": torch.get_num_threads(),
    }
    otherwise = f"name another --output or delete {config.output}"
    run_folder.ensure_same_run(config.output / "settings.json", now, config, otherwise)


def llama_cpp(exported: dict, small: str, large: str, tokenizer, context: int, folder: Path) -> list[Callable]:
    """A function that answers with llama.cpp, in each of ``WAYS``."""
    draft = exported["speculative"]["draft"]
    settings = [(), (small, DEFAULT_LENGTH, 0.0), (small, draft["n_max"], draft["p_min"])]
    return [XllamacppServer(large, tokenizer, context, *some).answer for some in settings]


def openvino(exported: dict, small: str, large: str, tokenizer, context: int, folder: Path) -> list[Callable]:
    """A function that answers with OpenVINO GenAI, in each of ``WAYS``."""
    folders = [convert(source, folder / name) for source, name in ((large, "large"), (small, "small"))]
    return [OpenVINO(*some).answer for some in (folders[:1], folders, (*folders, exported))]


class Engine(NamedTuple):
    """The ``file`` of an export with its settings, what must be installed, and how to ``build`` an answer function."""

    file: str
    module: str
    package: str
    build: Callable[..., list[Callable]]


ENGINES = {
    "llama.cpp": Engine("xllamacpp.json", "xllamacpp", "xllamacpp", llama_cpp),
    "openvino": Engine("generation_config.json", "openvino_genai", "openvino-genai", openvino),
}


def measure(config, ways: dict[str, Callable], prompts: Sequence[Prompt]) -> list[dict]:
    """A row for each repeat and prompt, as ``experiments/speed.py`` keeps them; missing ones are measured first."""
    path = config.output / "rows.jsonl"
    done = {(row["repeat"], row["prompts"][0]): row for row in atomic.read_rows(path)}
    todo = [(r, p) for r in range(config.repeats) for p in prompts]
    for answer in ways.values():
        answer(prompts[0].ids, min(8, config.max_new_tokens))  # the first answer includes the engine's preparations
    rows, names = [], list(ways)
    for turn, (repeat, prompt) in enumerate(todo):
        key = repeat, f"{prompt.id}:{split_hash([prompt])[:8]}"
        if key not in done:
            start = turn % len(names)
            answers = {n: ways[n](prompt.ids, config.max_new_tokens) for n in names[start:] + names[:start]}
            figures = {n: {"seconds": s, "tokens": len(ids)} for n, (ids, s) in answers.items()}
            for name in names:
                alone = answers[f"{name.split()[0]} alone"][0]
                figures[name]["equal"] = int(answers[name][0] == alone)
            done[key] = {"batch": 1, "repeat": repeat, "prompts": [key[1]], "methods": figures}
            atomic.append_rows(path, [done[key]])
        rows.append(done[key])
    return rows


def summarize(rows: Sequence[dict], engine: str) -> dict:
    """For each way: tokens per second, texts equal to those without speculation, and speed relative to the others."""
    times = {way: seconds_per_token(rows, f"{engine} {way}") for way in WAYS}
    return {
        way: {
            "tokens_per_second": float(1 / np.median(times[way])),
            "equal": [sum(row["methods"][f"{engine} {way}"]["equal"] for row in rows), len(rows)],
            "ratios": {base: paired_ratio(times[base], times[way]) for base in WAYS if base != way},
        }
        for way in WAYS
    }


def show(result: dict) -> None:
    """Print a line for each engine and way."""
    rows = []
    for engine, ways in result["engines"].items():
        for way, row in ways.items():
            cells = [_ratio(row["ratios"].get(base)) for base in ("alone", "default")]
            rows.append((f"{engine} {way}", f"{row['tokens_per_second']:.1f}", *cells, "{}/{}".format(*row["equal"])))
    head = ("engine, way", "tokens/s", "x alone", "x default", "same text")
    print_rows(head, rows, f"{result['prompts']} prompts")


def _ratio(found: dict | None) -> str:
    return "" if found is None else with_interval(found["median"], found["interval"], ".2f")
