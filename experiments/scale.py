"""How the driver's time and memory grow with the number of prompts.

    python experiments/scale.py --prompts 1000 10000 100000 1000000

Synthetic prompts and traces are written, with as many rows as the main job's have at its default settings. Then each
step of the driver runs in a process of its own: prompts are read and split by groups, traces are read, a policy is
fitted, one trial is replayed. Memory is the peak of the process, what it imports included.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from train.common.cli import at_least, checking, command

STEPS = ("load", "split", "traces", "fit", "replay")


@dataclass
class Scale:
    """Time and peak memory of each step of the driver, by the number of prompts."""

    prompts: tuple[int, ...] = (1000, 10_000, 100_000)
    shard: int = 256
    """prompts in a file of traces; the main job writes 8"""
    output: Path = Path("scale")
    """folder of the synthetic files, which take 13 kB a prompt and are removed in the end, and of scale.json"""
    seed: int = 0


def run(config: Scale) -> list[dict]:
    """One row a number of prompts. Raises InputError before any work is done.

    Its imports are here, so that --help answers at once.
    """
    from experiments.shared.synthetic_prompts import write_prompts, write_traces
    from train.common import atomic
    from train.common.machine import machine
    from train.common.progress import progress, say
    from train.reports.terminal import print_rows

    with checking():
        at_least(config, {"shard": 1, "seed": 0})
        if not config.prompts or min(config.prompts) < 100:
            raise ValueError("--prompts are numbers of at least 100")
        config.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for count in config.prompts:
        folder = config.output / f"prompts-{count}"
        folder.mkdir(exist_ok=True)
        with progress(f"writing {count:,} prompts and their traces"):
            write_prompts(folder / "prompts.jsonl", count, config.seed)
            write_traces(folder / "traces", count, config.shard, config.seed)
        row = {"prompts": count, "shard": config.shard, "bytes": _bytes(folder)}
        for step in STEPS:
            row[step] = _alone(_measured, step, folder, count)
            say(f"{count:,} prompts, {step}: {row[step]}")
        rows.append(row)
        shutil.rmtree(folder)
        atomic.write_json(config.output / "scale.json", {"machine": machine("cpu", []), "rows": rows})
    print_rows(["prompts", *STEPS], [_shown(row) for row in rows], "seconds, and peak memory of the process")
    return rows


def _shown(row: dict) -> list[str]:
    cells = (f"{row[step]['seconds']:.1f} s, {row[step]['peak_mib']:,} MiB" for step in STEPS)
    return [f"{row['prompts']:,}", *cells]


def _bytes(folder: Path) -> dict[str, int]:
    traces = sum(path.stat().st_size for path in (folder / "traces").iterdir())
    return {"prompts": (folder / "prompts.jsonl").stat().st_size, "traces": traces}


def _alone(step: Callable, *arguments) -> dict:
    """The result of ``step`` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(step, *arguments).result()


def _measured(step: str, folder: Path, count: int) -> dict:
    """Seconds and peak MiB of a step, and what it says of itself."""
    taken: list[float] = []

    @contextmanager
    def timed() -> Iterator[None]:
        began = time.perf_counter()
        yield
        taken.append(time.perf_counter() - began)

    found = {"load": _load, "split": _split, "traces": _traces, "fit": _fit, "replay": _replay}[step](
        folder, count, timed
    )
    return {"seconds": round(sum(taken), 3), "peak_mib": peak_mib()} | found


def peak_mib() -> int:
    """Peak resident MiB of this process (Linux); what getrusage says includes the process that started it."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024


def _load(folder: Path, count: int, timed) -> dict:
    from experiments.shared.synthetic_prompts import stand_in
    from train.data.prompts import load_prompts

    with timed():
        prompts = load_prompts(folder / "prompts.jsonl", stand_in)
    return {"tokens": sum(len(prompt.ids) for prompt in prompts)}


def _split(folder: Path, count: int, timed) -> dict:
    from experiments.shared.synthetic_prompts import stand_in
    from train.data.prompts import load_prompts
    from train.data.splits import split

    prompts = load_prompts(folder / "prompts.jsonl", stand_in)
    with timed():
        parts = split(prompts, {"fit": 0.4, "tune": 0.2, "holdout": 0.4})
    return {name: len(part) for name, part in parts.items()}


def _traces(folder: Path, count: int, timed) -> dict:
    import numpy as np

    from experiments.shared.synthetic_prompts import fitted
    from train.traces.trace_sample import read_sample

    with timed():
        sample = read_sample(folder / "traces", fitted(count))
    for name in ("texts", "rows"):
        np.savez(folder / f"{name}.npz", **getattr(sample, name).columns)
    return {"rows": sample.seen, "replayed": len(sample.texts), "fitted": len(sample.rows)}


def _search(folder: Path, count: int):
    """The search of these traces, as the main job makes it."""
    import numpy as np

    from decoding.cost.costs import ModelCosts
    from experiments.shared.synthetic_prompts import fitted
    from train.search.backoff import Search
    from train.search.goal import Goal
    from train.traces.handoff_traces import Traces

    texts, rows = (Traces(dict(np.load(folder / f"{name}.npz"))) for name in ("texts", "rows"))
    cost = ModelCosts(({1: 1.0, 4: 1.5, 16: 4.0}, {1: 8.0, 4: 9.0, 16: 18.0}))
    own = np.isin(texts["prompt"], list(fitted(count)))
    handoff = texts["trajectory"] != "large"
    some = rows, texts.where(~own & handoff), cost, Goal(speedup=1.3), None
    return Search("logistic", "regret", *some, handoffs=texts.where(own & handoff))


PARAMS = {"features": "confidence+history", "C": 0.1, "quantile": 0.5}


def _fit(folder: Path, count: int, timed) -> dict:
    search = _search(folder, count)
    with timed():
        search.policy(PARAMS)
    return {}


def _replay(folder: Path, count: int, timed) -> dict:
    search = _search(folder, count)
    policy, quantile = search.policy(PARAMS), PARAMS["quantile"]
    with timed():
        search.point(policy, quantile)
    return {}


main = command(Scale, run, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
