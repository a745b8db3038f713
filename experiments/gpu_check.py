"""Everything that is to be known of the engine on a GPU: first whether it is right, then how fast.

    python experiments/gpu_check.py              # every part that has left no file yet; start it again where it stopped
    python experiments/gpu_check.py --report     # the table of the files, beside the roofline on paper (docs/gpu.md)
    python experiments/gpu_check.py --tiny       # every part, in toy shapes, on a CPU

Each part takes minutes and leaves a JSON file with the card's name in `--output`. Models have random weights in
published shapes, made on the device, so nothing is downloaded; drafts of random weights are never accepted, so a token
of a speculative row is a round. No figure of a GPU has been taken with it yet.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from decoding.cli.dtypes import DtypeOptions
from experiments.engine_speed.random_models import SHAPES, random_pair
from experiments.gpu import correctness, goals, roofline, speed
from train.common import atomic
from train.common.cli import checking, command
from train.common.machine import machine
from train.reports.terminal import print_rows

PAIRS = ("llama-8b+1b", "qwen3-8b+0.6b")
CHECKS = ("texts", "waits", "streams", "kernels")
SPEEDS = tuple(f"{pair} {batch}" for pair in PAIRS for batch in ("1", *map(str, speed.BATCHED), "transformers"))
PARTS = (*CHECKS, *SPEEDS)


@dataclass
class GpuCheck:
    """Correctness, then speed, in parts that are left out once they have a file."""

    output: Path = Path("runs/gpu_check")
    parts: tuple[str, ...] | None = None
    """some of them: texts, waits, streams, kernels, or a pair and a batch such as "llama-8b+1b 1"; default: all"""
    tiny: bool = False
    """toy shapes on the CPU"""
    report: bool = False
    """print the table of the files instead"""
    max_new_tokens: int = 256
    prompt: int = 256
    """tokens of the prompts of speed rows"""


def check_settings(config: GpuCheck) -> tuple[str, ...]:
    """The parts. ValueError for what is wrong."""
    parts = PARTS if config.parts is None else config.parts
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"--parts {unknown[0]!r} is none of {', '.join(PARTS)}")
    if not 8 <= config.max_new_tokens <= 4096 or not 1 <= config.prompt <= 4096:
        raise ValueError("--max-new-tokens must be from 8 to 4096 and --prompt from 1 to 4096")
    if not (config.tiny or config.report or torch.cuda.is_available()):
        raise ValueError("no CUDA device was found; --tiny runs every part on the CPU")
    return parts


def run(config: GpuCheck) -> None:
    """Run the parts that are left, or print what they found. Raises InputError before any work is done."""
    with checking():
        parts = check_settings(config)
        config.output.mkdir(parents=True, exist_ok=True)
    if not config.report:
        for part in parts:
            measure(part, config)
    report(config)


def measure(part: str, config: GpuCheck) -> None:
    """Run one part and write its file, unless there is one."""
    path = file_of(part, config)
    if path.exists():
        return
    device = "cpu" if config.tiny else "cuda"
    began = time.perf_counter()
    found = of_part(part, device, config)
    minutes = (time.perf_counter() - began) / 60
    kind = "float32" if config.tiny else "bfloat16"
    about = {"part": part, "tiny": config.tiny, "minutes": minutes, "machine": machine(device, [kind])}
    atomic.write_json(path, about | {"prompt": config.prompt, "new": config.max_new_tokens} | found)
    print(f"{part}: {minutes:.1f} minutes" + ("" if found.get("passed", True) else ", NOT PASSED"), flush=True)


def of_part(part: str, device: str, config: GpuCheck) -> dict:
    new = 16 if config.tiny else config.max_new_tokens
    checks: dict[str, Callable[[], dict]] = {
        "texts": lambda: correctness.texts(device, min(new, 64)),
        "waits": lambda: correctness.waits(device, min(max(new, 32), 64)),  # MTAD writes several tokens a round
        "streams": lambda: correctness.streams(device, min(new, 24)),
        "kernels": lambda: correctness.kernels(device, 10_000),
    }
    if part in checks:
        return checks[part]()
    name, _, batch = part.rpartition(" ")
    dtypes = DtypeOptions().resolved(["float32" if config.tiny else "bfloat16"] * 2)
    pair = random_pair("tiny" if config.tiny else name, device, dtypes)
    prompt = 16 if config.tiny else config.prompt
    if batch == "transformers":
        return {"rows": list(speed.peers(pair, new, prompt))}
    return {"rows": list(speed.measured(pair, int(batch), new, prompt))}


def file_of(part: str, config: GpuCheck) -> Path:
    return config.output / f"{'tiny ' if config.tiny else ''}{part}.json".replace(" ", "-")


def report(config: GpuCheck) -> None:
    """Print the checks, and every row beside the paper's tokens a second."""
    files = {part: file_of(part, config) for part in PARTS}
    known = {part: json.loads(path.read_text()) for part, path in files.items() if path.exists()}
    cards = sorted({found["machine"]["device"] for found in known.values()})
    print(f"{len(known)} of {len(PARTS)} parts, on {', '.join(cards) or 'no device yet'}")
    checks = [(part, "passed" if known[part]["passed"] else "NOT PASSED") for part in CHECKS if part in known]
    if checks:
        print_rows(("check", "result"), checks)
    table = []
    for part in SPEEDS:
        pair = part.rpartition(" ")[0]
        for row in known.get(part, {}).get("rows", ()):
            found = known[part]
            paper = on_paper(row, pair, found)
            joules = row.get("joules")
            table.append((
                pair, row["row"], str(row["batch"]), f"{row['batch'] / row['seconds_a_token']:.1f}",
                *(f"{row['batch'] / x:.0f}" if x else "" for x in paper),
                "" if joules is None else f"{joules / (1.5 * found['new'] * row['batch']):.3g}",
            ))  # fmt: skip
    if table:
        heads = "pair", "row", "batch", "tokens/s", "on paper, H100", "its limit", "J/token"
        print_rows(heads, table)
    reached = [line for pair in PAIRS for line in goals.reached(pair, known)]
    if reached:
        print_rows(("pair", "goal", "at least", "found"), reached)
    costs = [row["warm_up"] for part in SPEEDS for row in known.get(part, {}).get("rows", ()) if "warm_up" in row]
    if recordings := sum(cost["recordings"] for cost in costs):
        size = sum(cost["bytes"] for cost in costs) / 2**30
        print(f"{recordings} graphs recorded in {sum(cost['seconds'] for cost in costs):.1f} s, {size:.1f} GiB")


def on_paper(row: dict, pair: str, found: dict) -> tuple[float | None, float | None]:
    """Seconds of a token by the roofline, and by the bytes alone; None for toys and for transformers."""
    if found["tiny"] or row["row"].startswith("transformers"):
        return None, None
    context = found["prompt"] + found["new"] * 3 // 4
    what = row["row"], SHAPES[pair], row["batch"], context, roofline.H100
    return roofline.seconds(*what), roofline.seconds(*what, limit=True)


main = command(GpuCheck, run, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
