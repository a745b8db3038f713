"""Replay of speculative decoding against live runs, call for call, and the number of trials it replays a second.

python experiments/replay.py --limit 6
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from decoding import Speculative, default_pair, generate
from decoding.cli.options import use
from decoding.cost.timing import measure
from policies import Rule, Survival
from train.common import atomic
from train.common.cli import checking, command
from train.data.prompts import load_prompts
from train.data.splits import split
from train.replay.oracle import oracle
from train.replay.speculative import Replay, gap
from train.reports.terminal import print_rows
from train.traces.collect_drafts import collect_drafts
from train.traces.draft_traces import read_drafts


@dataclass
class ReplayCheck:
    """Draft traces of the default pair against live runs on the same prompts, and the time of many replays."""

    limit: int = 6
    """prompts decoded live, of groups that no policy is fitted on"""
    max_new_tokens: int = 64
    longest: int = 7
    """longest draft that is logged"""
    bulk: int = 0
    """more prompts to log for the timing; 160 of 64 tokens make 10,000"""
    positions: int = 100_000
    """the logged texts are repeated to this many tokens before replays are timed"""
    trials: int = 1000
    threads: int | None = None
    output: Path | None = None
    """write the figures to this JSON file"""


def run(config: ReplayCheck) -> dict:
    """Measure, print and write the figures."""
    with checking():
        use("cpu", config.threads)
    pair = default_pair()
    every = load_prompts(None, pair[1].tokenizer)
    prompts = split(every)["holdout"][: config.limit]
    chosen = {p.id for p in prompts}
    more = [p for p in every if p.id not in chosen][: config.bulk]
    # One by one, as they are decoded live: in low precision a logit depends on the number of rows.
    live = trace(pair, prompts, config, batch=1)
    bulk = trace(pair, more, config) if more else live
    result = {"live": compare(pair, prompts, live, config), "trials": benchmark(bulk, config)}
    show(result)
    if config.output is not None:
        atomic.write_json(config.output, result)
    return result


def trace(pair, prompts, config: ReplayCheck, **options) -> Replay:
    """A replay of drafts for ``prompts``."""
    with tempfile.TemporaryDirectory() as folder:
        collect_drafts(*pair, prompts, config.longest, Path(folder) / "drafts", config.max_new_tokens, **options)
        return Replay(read_drafts(Path(folder) / "drafts"))


def compare(pair, prompts, replay, config: ReplayCheck) -> dict:
    """For each way to end a draft: prompts with equal calls, and predicted and measured seconds."""
    cost = measure(pair)
    ways = {f"length {n}": (None, n, False) for n in (1, 2, 4) if n <= config.longest}
    ways["top1 <= 0.4"] = (Rule("top1", 0.4, "<="), config.longest, False)
    ways["survival 0.7"] = (Survival(), config.longest, True)
    found = {}
    for name, (stop, length, keep) in ways.items():
        decoder, rows = Speculative(list(pair), length, stop, keep_stop_token=keep), []
        for prompt in prompts:
            one = generate(decoder, torch.tensor([prompt.ids]), max_new_tokens=config.max_new_tokens, seed=0)
            rows.append({"counts": one.counts, "seconds": one.seconds["total"]})
        one = gap(replay(stop, length, keep), rows, cost)
        found[name] = one | {"equal": f"{int(one['equal'].sum())}/{len(prompts)}"}
    best = oracle(replay.texts, config.longest, config.max_new_tokens, cost)
    return found | {"oracle": {"predicted": float(best.sum())}}


def benchmark(replay, config: ReplayCheck) -> dict:
    """Trials replayed a second, by kind; each trial has a threshold or a draft length of its own."""
    times = -(-config.positions // int(replay.texts.tokens.sum()))
    tiled = Replay(replay.traces.tiled(times))
    rule = Rule("entropy", 1.0)
    score = tiled.scores(rule)
    cut = lambda i: 0.05 + 0.9 * i / config.trials  # noqa: E731
    kinds = {
        "fixed length": lambda i: tiled(length=1 + i % config.longest),
        "rule": lambda i: tiled(Rule("top1", cut(i), "<=")),
        "threshold on kept scores": lambda i: tiled(rule.with_threshold(5 * cut(i)), score=score),
        "survival": lambda i: tiled(Survival(threshold=cut(i)), keep_stop_token=True),
        "looks back over rounds": lambda i: tiled(Rule("mean_entropy", 5 * cut(i))),
    }
    found = {"tokens": int(tiled.texts.tokens.sum()), "logged": int(replay.texts.tokens.sum())}
    for name, trial in kinds.items():
        # Fewer trials, evenly spread: some kinds are slow.
        some, began = range(0, config.trials, max(1, config.trials // 50)), time.perf_counter()
        for i in some:
            trial(i)
        found[name] = len(some) / (time.perf_counter() - began)
    return found


def show(result: dict) -> None:
    """Print both tables."""
    rows = []
    for name, row in result["live"].items():
        numbers = [f"{row[key]:.2f}" if key in row else "" for key in ("predicted", "measured", "ratio")]
        rows.append((name, row.get("equal", ""), *numbers))
    print_rows(("draft", "same calls", "predicted s", "measured s", "ratio"), rows)
    trials = result["trials"]
    head = ("trial", f"trials a second, {trials['tokens']:,} tokens ({trials['logged']:,} logged)")
    print_rows(head, [(name, f"{rate:.1f}") for name, rate in trials.items() if name not in ("tokens", "logged")])


main = command(ReplayCheck, run, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
