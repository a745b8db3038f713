"""Texts of decoders to batches of prompts, judged where a reference is known: a shard is one batch of one decoder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decoding import Sampling
from policies.storage import documents
from train.baselines.subprocess_engine import SubprocessEngine
from train.common.generations import write
from train.common.job import Job
from train.data.prompts import Prompt
from train.quality.metric import QualityMetric
from train.workers.blueprint import Blueprint
from train.workers.pair import Pair
from train.workers.stage import Stage
from train.workers.stage_folder import AGAIN

OWN = "own"
"""in place of references: each text is judged beside itself, as the large model's are"""


@dataclass(frozen=True)
class TextBatch:
    """A batch of prompts, and the texts of it that are asked for: one of each prompt for every seed."""

    decoder: str
    prompts: Sequence[Prompt]
    seeds: Sequence[int]
    references: Sequence[list[int] | None] | str | None = None
    """of each prompt, beside which its texts are judged, or ``OWN``; a text without one is not judged"""

    def task(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**vars(self), "prompts": [prompt.plain() for prompt in self.prompts]}


def written(
    job: Job, title: str, decoders: Mapping[str, Blueprint], batches: Mapping[int, TextBatch], setting: str = ""
) -> Iterator[tuple[TextBatch, list[dict]]]:
    """The texts of each of ``batches``, in their order: rows of all its prompts for its first seed, then the next.

    A row: ``answer`` and ``writers``, ``large_share``, and what the job's metric says (``Judgement``) if it is judged.
    The number of a batch is the same in every start, whatever is missing by then. Texts of another ``setting`` are
    written again.
    """
    settings = {
        "max_new_tokens": job.new,
        "sampling": asdict(job.sampling),
        "seeds": job.seeds,
        "grader": job.metric.grader,
        "setting": setting,
    }
    tasks = {number: batch.task() for number, batch in batches.items()}
    stage = Stage("texts", title, job.folder, settings, tasks, dict(decoders))
    for number, path in job.crew.made(stage, Pair(job.models, job.metric)):
        found = documents.read(path, AGAIN)
        if job.metric.grade is not None:
            job.metric.grade.failed.update(found["failed"])
        yield batches[number], found["rows"]


class TextShards:
    """Makes the shards of ``written``."""

    def __init__(self, pair: Pair, settings: dict[str, Any], decoders: dict[str, Any]):
        self.decoders, self.new = decoders, settings["max_new_tokens"]
        self.sampling = Sampling(**settings["sampling"])
        how = self.sampling, settings["seeds"], self.new, settings["grader"]
        self.metric = pair.metric or QualityMetric.of(pair.models[-1], *how)

    def __call__(self, task: dict[str, Any], path: Path) -> None:
        prompts, decoder = [Prompt.of(one) for one in task["prompts"]], self.decoders[task["decoder"]]
        rows, references = [], task["references"]
        for seed in task["seeds"]:
            texts = self._texts(decoder, prompts, seed)
            beside = [text[0] for text in texts] if references == OWN else references or [None] * len(prompts)
            rows += [self._row(decoder, *one) for one in zip(prompts, texts, beside, strict=True)]
        failed = set() if self.metric.grade is None else self.metric.grade.failed & {prompt.id for prompt in prompts}
        documents.write(path, {"rows": rows, "failed": sorted(failed)})

    def _texts(self, decoder, prompts: Sequence[Prompt], seed: int) -> list[tuple[list[int], list[int]]]:
        if isinstance(decoder, SubprocessEngine):
            return [(decoder.answer(prompt.ids, self.new)[0], []) for prompt in prompts]
        return write(decoder, prompts, self.new, self.sampling, seed)

    def _row(self, decoder, prompt: Prompt, text: tuple[list[int], list[int]], reference: list[int] | None) -> dict:
        answer, writers = text
        share = float(np.mean(np.array(writers) == len(decoder.models) - 1)) if writers else 1.0
        row = {"answer": answer, "writers": writers, "large_share": share}
        return row if reference is None else row | self.metric(prompt, answer, reference)._asdict()
