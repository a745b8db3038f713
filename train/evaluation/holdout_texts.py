"""Texts of held-out prompts, written in batches and judged: a loss takes many prompts, and needs no clock."""

from collections.abc import Sequence

import numpy as np

from train.baselines.subprocess_engine import SubprocessEngine
from train.common.atomic import append_rows, read_rows
from train.common.generations import batches, capped, write
from train.common.job import Job
from train.common.progress import track
from train.common.rows import HoldoutText
from train.data.prompts import Prompt
from train.evaluation.live import LARGE
from train.replay.pricing import handoff_seconds

Columns = dict[str, np.ndarray]
FIELDS = ("large_share", "loss", "regret", "guarded")


def places(prompts: Sequence[Prompt]) -> dict[str, int]:
    """The place of each prompt in its batches, by id: the seed of its texts, in a batch and on its own."""
    return {prompt.id: place for place, prompt in enumerate(p for some in batches(prompts) for p in some)}


def write_texts(job: Job, decoders: dict[str, object], setting: str) -> dict[str, list[dict]]:
    """Per decoder a row (``HoldoutText``) for each held-out prompt, in their order; one of ``decoders`` is "large".

    Whole batches are appended to texts.jsonl; those that it holds of the same ``setting`` are not written again.
    """
    prompts, path = job.splits["holdout"], job.folder / "texts.jsonl"
    at, grouped = places(prompts), batches(prompts)
    done = {(row["method"], row["id"]): row for row in read_rows(path, HoldoutText) if row["setting"] == setting}
    missing = [
        (name, some)
        for some in grouped  # judged one after the other, so that a prompt is read once
        for name in sorted(decoders, key=lambda name: name != LARGE)  # the others are judged against its texts
        if any((name, p.id) not in done for p in some)
    ]
    for name, some in track(missing, "hold-out, texts in batches"):
        rows, texts = [], _written(decoders[name], some, job.new, at[some[0].id])
        for prompt, (answer, writers) in zip(some, texts, strict=True):
            reference = answer if name == LARGE else done[LARGE, prompt.id]["answer"]
            row = {"id": prompt.id, "method": name, "setting": setting, "answer": answer, "writers": writers}
            row["large_share"] = float(np.mean(np.array(writers) == len(decoders[name].models) - 1)) if writers else 1.0
            rows.append(row | job.metric(prompt, answer, reference)._asdict())
        append_rows(path, rows)
        done |= {(name, row["id"]): row for row in rows}
    return {name: [done[name, p.id] for p in prompts] for name in decoders}


def _written(decoder, prompts: Sequence[Prompt], new: int, seed: int) -> list[tuple[list[int], list[int]]]:
    if isinstance(decoder, SubprocessEngine):
        return [(decoder.answer(prompt.ids, new)[0], []) for prompt in prompts]
    return write(decoder, prompts, new, seed=seed)


def columns(job: Job, rows: Sequence[dict]) -> Columns:
    """Arrays [prompts] of the rows of one decoder: its tokens, the large model's share of them, loss, regret, guarded.

    Besides ``score`` (NaN without a grader), ``capped`` (whether the length cap ended it) and ``priced`` (seconds, if
    it is a hand-off).
    """
    prompts = job.splits["holdout"]
    found = {name: [row[name] for row in rows] for name in FIELDS}
    found["tokens"] = [len(row["answer"]) for row in rows]
    found["score"] = [np.nan if row.get("score") is None else row["score"] for row in rows]
    found["capped"] = [capped(job.large, row["answer"], job.new) for row in rows]
    found["priced"] = [
        handoff_seconds(len(p.ids), row["writers"], job.cost.tables) for p, row in zip(prompts, rows, strict=True)
    ]
    return {name: np.array(values, float) for name, values in found.items()}
