"""The measurement behind ``experiments/speed.py``: check, measure in turns, keep every row, sum up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.progress import track

from experiments.engine_speed import figure, forwards, summary
from experiments.engine_speed.setup import Task, check_bases, checked, load, remember, settings, tasks
from experiments.engine_speed.summary import BASES
from experiments.engines_under_test.catalogue import Models, build, file_bytes, parse, runnable
from experiments.shared.energy import counter
from train.common import atomic
from train.common.cli import checking

console = Console()
if not console.is_terminal:
    console = Console(width=170)  # a file or a pipe holds the whole table


def run(config) -> dict:
    """Measure what is not yet measured and write the result. Raises InputError before any work is done."""
    with checking():
        config = checked(config)
        with console.status("making or loading the models"):
            models, prompts = load(config)
        methods, lacking = runnable(config.methods, models)
        check_bases(methods)
        todo = tasks(config, prompts)
        remember(config, models, methods)
    for method, why in lacking.items():
        console.print(f"{method} is left out: {why}")
    rows = measure(todo, methods, models, config)
    head = {"settings": settings(config, models, methods), "prompts": len(prompts), "left_out": lacking}
    result = head | limits(methods, models)
    result["batches"] = {str(b): summary.summary(rows, b, methods, result) for b in config.batch}
    atomic.write_json(config.output / "result.json", result)
    figure.draw(result, config.output / "speed.png")
    summary.show(result, console)
    console.print(f"written to {config.output}: rows.jsonl, result.json, speed.png")
    return result


def limits(methods: Sequence[str], models: Models) -> dict:
    """The bandwidth of this machine, and how many bytes a token of each method's large model reads."""
    plain = forwards.weight_bytes(models.large.model)
    files = {method: file_bytes(method, models) for method in methods}
    return {
        "copy_bytes_per_second": forwards.copy_bandwidth(models.large.device),
        "weight_bytes": {method: plain if size is None else size for method, size in files.items()},
    }


def measure(todo: Sequence[Task], methods: Sequence[str], models: Models, config) -> list[dict]:
    """The rows of all tasks, those measured before among them."""
    path = config.output / "rows.jsonl"
    done = {(row["batch"], row["repeat"], tuple(row["prompts"])): row for row in atomic.read_rows(path)}
    left = [task for task in todo if task.key not in done]
    if left:
        ways = {method: build(method, models) for method in methods}
        turn = Turn(ways, models, config.max_new_tokens)
        turn.warm_up(left)
        for i, task in enumerate(track(left, "measuring", console=console)):
            row = turn.row(task, i)
            atomic.append_rows(path, [row])
            done[task.key] = row
        turn.recorder.close()
    return [done[task.key] for task in todo]


class Turn:
    """Every method once on the same prompts, and right after the same forwards bare."""

    def __init__(self, ways: dict[str, Callable], models: Models, new: int):
        self.ways, self.models, self.new = ways, models, new
        self.device, self.tokenizer = models.large.device, models.large.tokenizer
        self.recorder = forwards.Recorder(models.modules, models.lms)
        self.bare = forwards.BareForwards(models.modules, models.lms)
        self.joules = counter(self.device)

    def warm_up(self, todo: Sequence[Task]) -> None:
        """Every method once, briefly, at every size of batch."""
        for task in {task.batch: task for task in todo}.values():
            for method in self._methods(task):
                self.ways[method](task.prompts, min(8, self.new), 0)

    def row(self, task: Task, turn: int) -> dict:
        names = self._methods(task)
        start = turn % len(names)
        answers, calls, measured = {}, {}, {}
        for name in names[start:] + names[:start]:
            answers[name], calls[name], measured[name] = self._timed(name, task)
        reference = next(answers[base] for base in BASES if base in answers)
        for name, figures in measured.items():
            figures["equal"] = sum(map(self._same, answers[name], reference))
            figures["bare"] = self.bare.seconds(calls[name]) if calls[name] else None
        return {
            "batch": task.batch,
            "repeat": task.repeat,
            "prompts": task.names,
            "cost": {role: self.bare.one(self._one(role, task)) for role in ("small", "large")},
            "methods": {name: measured[name] for name in names},
        }

    def _methods(self, task: Task) -> list[str]:
        return [name for name in self.ways if task.batch == 1 or not parse(name)[0].one_row]

    def _timed(self, name: str, task: Task) -> tuple[list, list, dict]:
        """(answers, forwards, figures) of one method."""
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        self.recorder.take()
        forwards.wait(self.device)
        spent = self.joules() if self.joules is not None else None
        began = forwards.clock()
        written = self.ways[name](task.prompts, self.new, seed=0)
        forwards.wait(self.device)
        seconds = forwards.clock() - began
        writers = [writer for _, some in written for writer in some]
        figures = {
            "seconds": seconds,
            "tokens": sum(len(tokens) for tokens, _ in written),
            "share": sum(writers) / len(writers) if writers and name.startswith("backoff") else None,
            "peak_bytes": torch.cuda.max_memory_allocated(self.device) if cuda else None,
            "joules": None if spent is None else self.joules() - spent,
        }
        return [tokens for tokens, _ in written], self.recorder.take(), figures

    def _one(self, role: str, task: Task) -> forwards.Call:
        """One token of each row in the middle of its answer."""
        context = max(len(p.ids) for p in task.prompts) + self.new // 2
        return forwards.Call(role, task.batch, 1, 1, context)

    def _same(self, answer: list[int], reference: list[int]) -> bool:
        """As text where there is a tokenizer: llama.cpp answers with text."""
        if answer == reference or self.tokenizer is None:
            return answer == reference
        texts = [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in (answer, reference)]
        return texts[0] == texts[1]
