"""The measurement of ``experiments/overhead.py``: methods in turns, every row kept."""

from collections.abc import Callable, Sequence

import torch

from experiments.engine_speed import forwards
from experiments.engine_speed.setup import PromptGroup
from experiments.engine_speed.summary import BASES
from experiments.engines_under_test.catalogue import Models, build, file_bytes, parse
from experiments.shared.energy import counter
from train.common import atomic
from train.common.progress import track
from train.common.rows import TimingRow


def measure_limits(methods: Sequence[str], models: Models) -> dict:
    """Bytes per second that this device copies, and bytes that a token of each method's large model reads."""
    plain = forwards.weight_bytes(models.large.model)
    files = {method: file_bytes(method, models) for method in methods}
    return {
        "copy_bytes_per_second": forwards.copy_bandwidth(models.large.device),
        "weight_bytes": {method: plain if size is None else size for method, size in files.items()},
    }


def measure(groups: Sequence[PromptGroup], methods: Sequence[str], models: Models, config) -> list[dict]:
    """The rows of all groups; those that rows.jsonl lacks are measured first."""
    path = config.output / "rows.jsonl"
    done = {(row["batch"], row["repeat"], tuple(row["prompts"])): row for row in atomic.read_rows(path, TimingRow)}
    left = [group for group in groups if group.key not in done]
    if left:
        timer = MethodTimer({method: build(method, models) for method in methods}, models, config.max_new_tokens)
        timer.warm_up(left)
        for i, group in enumerate(track(left, "measuring")):
            done[group.key] = timer.row(group, i)
            atomic.append_rows(path, [done[group.key]])
        timer.recorder.close()
    return [done[group.key] for group in groups]


class MethodTimer:
    """Times every method on the same prompts, and right after them the same forwards bare."""

    def __init__(self, methods: dict[str, Callable], models: Models, new: int):
        self.methods, self.models, self.new = methods, models, new
        self.device, self.tokenizer = models.large.device, models.large.tokenizer
        self.recorder = forwards.Recorder(models.modules, models.lms)
        self.bare = forwards.BareForwards(models.modules, models.lms)
        self.joules = counter(self.device)

    def warm_up(self, groups: Sequence[PromptGroup]) -> None:
        """Run every method once, briefly, at every batch size."""
        for group in {group.batch: group for group in groups}.values():
            for method in self._fitting(group):
                self.methods[method](group.prompts, min(8, self.new), 0)

    def row(self, group: PromptGroup, turn: int) -> dict:
        """Measurements of all methods on one group, in an order that rotates with ``turn``."""
        names = self._fitting(group)
        start = turn % len(names)
        answers, calls, measured = {}, {}, {}
        for name in names[start:] + names[:start]:
            answers[name], calls[name], measured[name] = self._timed(name, group)
        reference = next(answers[base] for base in BASES if base in answers)
        for name, figures in measured.items():
            figures["equal"] = sum(map(self._same, answers[name], reference))
            figures["bare"] = self.bare.seconds(calls[name]) if calls[name] else None
        return {
            "batch": group.batch,
            "repeat": group.repeat,
            "prompts": group.names,
            "cost": {role: self.bare.one(self._one(role, group)) for role in ("small", "large")},
            "methods": {name: measured[name] for name in names},
        }

    def _fitting(self, group: PromptGroup) -> list[str]:
        return [name for name in self.methods if group.batch == 1 or not parse(name)[0].one_row]

    def _timed(self, name: str, group: PromptGroup) -> tuple[list, list, dict]:
        """(answers, forwards, figures) of one method on one group."""
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        self.recorder.take()
        forwards.wait(self.device)
        spent = self.joules() if self.joules is not None else None
        began = forwards.clock()
        written = self.methods[name](group.prompts, self.new, seed=0)
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

    def _one(self, role: str, group: PromptGroup) -> forwards.Call:
        """A forward of one token of each row, in the middle of its answer."""
        context = max(len(p.ids) for p in group.prompts) + self.new // 2
        return forwards.Call(role, group.batch, 1, 1, context)

    def _same(self, answer: list[int], reference: list[int]) -> bool:
        """Equality of tokens, or of texts where there is a tokenizer: llama.cpp answers with text."""
        if answer == reference or self.tokenizer is None:
            return answer == reference
        texts = [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in (answer, reference)]
        return texts[0] == texts[1]
