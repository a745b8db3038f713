"""Speed of llama.cpp and OpenVINO GenAI with an exported stop, with their own defaults, and without speculation.

    python -m policies.export runs/NAME/policy.json --to llama.cpp --role stop --length 8 --output out/llama.cpp
    python -m policies.export runs/NAME/policy.json --to openvino --role stop --output out/openvino
    python experiments/exported.py out/llama.cpp out/openvino

Every engine answers the same prompts in three ways, in turns: without speculation (``alone``), with the draft model and
the engine's own defaults (``default``), and with the draft model and the exported settings (``exported``). The table
holds medians of tokens per second over prompts, paired ratios with 95 % bootstrap intervals, and how many texts are the
same: all three ways write the large model's greedy text, except at near-ties.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tyro.conf import Positional

from decoding.cli.options import use
from decoding.models.defaults import DRAFTER, load_model, target_source
from experiments.engine_speed.summary import paired_ratio, seconds_per_token, shown_ratio
from experiments.engines_under_test.openvino_engine import OpenVINO, convert
from policies.export.checking import check
from train.baselines.xllamacpp_server import XllamacppServer
from train.common import atomic, run_folder
from train.common.cli import at_least, checking, command
from train.common.rows import TimingRow
from train.data.options import PromptOptions, Reading
from train.data.prompts import Prompt, load_prompts, room_for_prompts
from train.data.splits import split_hash
from train.reports.terminal import print_rows

WAYS = ("alone", "default", "exported")
DEFAULT_LENGTH = 3
"""llama.cpp's own ``--spec-draft-n-max``; its ``p_min`` is 0."""


@dataclass
class ExportedSpeed:
    """Speed of other engines: without speculation, with their own defaults, with exported settings."""

    folders: Positional[tuple[Path, ...]]
    """folders that `python -m policies.export --to llama.cpp` or `--to openvino` wrote"""
    limit: int = 24
    """prompts, spread over their families"""
    max_new_tokens: int = 64
    repeats: int = 3
    large: str | None = None
    """.gguf of the large model (default: SmolLM2-135M-Instruct)"""
    small: str | None = None
    """.gguf of the small model (default: the drafter in the repository)"""
    prompts: str | None = None
    """prompts as train/fit_policy.py takes them (default: the embedded ones)"""
    threads: int | None = None
    """CPU threads (default: torch's choice)"""
    output: Path = Path("runs/exported/default")
    """folder of rows.jsonl, settings.json, result.json and the converted models"""
    reading: Reading = field(default_factory=PromptOptions)


def run(config: ExportedSpeed) -> dict:
    """Measure what is not measured yet and write the result. Raises InputError before any work is done."""
    with checking():
        settings = read_folders(config)
        small, large = models = find_ggufs(config)
        prompts, tokenizer = load(config)
        now = {
            "told": settings,
            "models": list(models),
            "max_new_tokens": config.max_new_tokens,
            "engines": {ENGINES[name].package: version(ENGINES[name].package) for name in settings},
            "threads": torch.get_num_threads(),
        }
        otherwise = f"name another --output or delete {config.output}"
        run_folder.ensure_same_run(config.output / "settings.json", now, config, otherwise)
    context = max(len(p.ids) for p in prompts) + config.max_new_tokens + 64
    ways = {}
    for engine, told in settings.items():
        built = ENGINES[engine].build(told, small, large, tokenizer, context, config.output)
        ways |= {f"{engine} {way}": answer for way, answer in zip(WAYS, built, strict=True)}
    rows = measure(config, ways, prompts)
    engines = {engine: summarize(rows, engine) for engine in settings}
    result = {"settings": settings, "prompts": len(prompts), "engines": engines}
    atomic.write_json(config.output / "result.json", result)
    show(result)
    return result


def read_folders(config: ExportedSpeed) -> dict[str, dict]:
    """The exported settings of each folder, by target. ValueError for folders that cannot be measured."""
    at_least(config, dict.fromkeys(("limit", "max_new_tokens", "repeats"), 1))
    settings = {}
    for folder in config.folders:
        target = check(folder)["target"]
        if target not in ENGINES or target in settings:
            raise ValueError(f"{folder} is an export to {target}; give at most one of each: {', '.join(ENGINES)}")
        engine = ENGINES[target]
        if importlib.util.find_spec(engine.module) is None:
            raise ValueError(f"{folder} is for {target}, which is not installed; pip install {engine.package}")
        settings[target] = json.loads((folder / engine.file).read_bytes())
    if not settings:
        raise ValueError("give at least one folder that python -m policies.export wrote")
    return settings


def find_ggufs(config: ExportedSpeed) -> tuple[str, str]:
    """(small, large) files: both engines read them themselves. ValueError for anything that is no file."""
    small = str(DRAFTER) if config.small is None else config.small
    large = target_source() if config.large is None else config.large
    for file in (small, large):
        if not file.endswith(".gguf") or not Path(file).is_file():
            raise ValueError(f"{file} is no .gguf file, which these engines need")
    return small, large


def load(config: ExportedSpeed) -> tuple[list[Prompt], object]:
    """(prompts, the tokenizer of both models), which the small model is loaded for: it is quick to load."""
    use("cpu", config.threads)
    small = load_model("small", config.small)
    room = room_for_prompts([small], config.max_new_tokens)
    return load_prompts(config.prompts, small.tokenizer, config.limit, room, config.reading), small.tokenizer


class Engine(NamedTuple):
    """The ``file`` of an export with its settings, what must be installed, and how to ``build`` an answer function
    for each of ``WAYS`` from (settings, small, large, tokenizer, context, folder)."""

    file: str
    module: str
    package: str
    build: Callable[..., list[Callable]]


def llama_cpp(told: dict, small: str, large: str, tokenizer, context: int, folder: Path) -> list[Callable]:
    draft = told["speculative"]["draft"]
    settings = [(), (small, DEFAULT_LENGTH, 0.0), (small, draft["n_max"], draft["p_min"])]
    return [XllamacppServer(large, tokenizer, context, *some).answer for some in settings]


def openvino(told: dict, small: str, large: str, tokenizer, context: int, folder: Path) -> list[Callable]:
    folders = [convert(source, folder / name) for source, name in ((large, "large"), (small, "small"))]
    return [OpenVINO(*some).answer for some in (folders[:1], folders, (*folders, told))]


ENGINES = {
    "llama.cpp": Engine("xllamacpp.json", "xllamacpp", "xllamacpp", llama_cpp),
    "openvino": Engine("generation_config.json", "openvino_genai", "openvino-genai", openvino),
}


def measure(config: ExportedSpeed, ways: dict[str, Callable], prompts: Sequence[Prompt]) -> list[dict]:
    """A row for each repeat and prompt, as ``experiments/overhead.py`` keeps them; missing ones are measured first."""
    path = config.output / "rows.jsonl"
    done = {(row["repeat"], row["prompts"][0]): row for row in atomic.read_rows(path, TimingRow)}
    for answer in ways.values():
        answer(prompts[0].ids, min(8, config.max_new_tokens))  # the first answer includes the engine's preparations
    rows, names = [], list(ways)
    for turn, (repeat, prompt) in enumerate((r, p) for r in range(config.repeats) for p in prompts):
        key = repeat, f"{prompt.id}:{split_hash([prompt])[:8]}"
        if key not in done:
            start = turn % len(names)
            answers = {n: ways[n](prompt.ids, config.max_new_tokens) for n in names[start:] + names[:start]}
            figures = {}
            for name in names:
                (ids, seconds), (alone, _) = answers[name], answers[f"{name.split()[0]} alone"]
                figures[name] = {"seconds": seconds, "tokens": len(ids), "equal": int(ids == alone)}
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
            ratios = [shown_ratio(row["ratios"].get(base)) for base in ("alone", "default")]
            rows.append((f"{engine} {way}", f"{row['tokens_per_second']:.1f}", *ratios, "{}/{}".format(*row["equal"])))
    head = ("engine, way", "tokens/s", "x alone", "x default", "same text")
    print_rows(head, rows, f"{result['prompts']} prompts")


main = command(ExportedSpeed, run, __doc__, lambda config: config.output)

if __name__ == "__main__":
    raise SystemExit(main())
