"""What 1,000 prompts cost the workers of a finished run, in seconds and bytes, step by step.

    python experiments/worker_cost.py runs/NAME

Seconds are those that log.txt gives for each step, so the run must not have been stopped in one of them; they are of
one process on the machine of the run. Bytes are what the step left on disk.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from train.common.cli import checking, command

STEP = re.compile(r"^(?P<title>.+?)(?: \d+/\d+)?, (?P<days>\d+ days?, )?(?P<h>\d+):(?P<m>\d\d):(?P<s>\d\d) in all$")


@dataclass
class WorkerCost:
    """Seconds and bytes of 1,000 prompts by step."""

    run: Annotated[Path, tyro.conf.Positional]
    """folder of a finished run of train/fit_policy.py --method backoff"""


def run(config: WorkerCost) -> list[dict]:
    """One row a step. Raises InputError before any work is done.

    Its imports are here, so that --help answers at once.
    """
    from train.common.result import read_result
    from train.reports.terminal import print_rows

    with checking():
        result = read_result(config.run)
        taken = seconds_of((config.run / "log.txt").read_text(encoding="utf-8").splitlines())
        rows = [_row(title, taken, prompts, size) for title, prompts, size in _steps(config.run, result, taken)]
    shown = [[r["step"], r["prompts"], f"{r['seconds']:,.0f}", f"{r['bytes'] / 2**20:,.1f}"] for r in rows]
    head = ["step", "prompts", "worker seconds per 1,000", "MiB per 1,000"]
    print_rows(head, shown, str(result.name), f"one process; {result.machine}")
    return rows


def seconds_of(lines: Iterable[str]) -> dict[str, float]:
    """The seconds of each step that a log says has ended; of a step that is there twice, their sum."""
    found: dict[str, float] = {}
    for match in filter(None, map(STEP.match, lines)):
        taken = 3600 * int(match["h"]) + 60 * int(match["m"]) + int(match["s"])
        found[match["title"]] = found.get(match["title"], 0.0) + taken
    return found


def _steps(folder: Path, result, taken: dict[str, float]) -> Iterable[tuple[str, int, int]]:
    """(title, prompts, bytes) of the steps that workers can share."""
    traced = result.splits["fit"].prompts + result.splits["tune"].prompts
    shards = sorted((folder / "traces").glob("shard-*.parquet"))
    rounds = [title for title in taken if title.startswith("tracing a policy")]
    each = len(shards) // (1 + len(rounds))
    for number, title in enumerate(["collecting traces", *rounds]):
        yield title, traced, sum(path.stat().st_size for path in shards[number * each : (number + 1) * each])
    if result.certificate is not None:
        texts = [title for title in taken if title.startswith("certification, ")]
        size = (folder / "certify.jsonl").stat().st_size // len(texts)  # lines of all kinds are about as long
        yield from ((title, result.certificate.prompts, size) for title in texts)


def _row(title: str, taken: dict[str, float], prompts: int, size: int) -> dict:
    if title not in taken:
        raise ValueError(f"log.txt does not say how long {title!r} took; give a run that collected its own traces")
    per = 1000 / prompts
    return {"step": title, "prompts": prompts, "seconds": taken[title] * per, "bytes": size * per}


main = command(WorkerCost, run, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
