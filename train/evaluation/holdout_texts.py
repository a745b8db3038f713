"""Texts of held-out prompts, written in batches and judged: a loss takes many prompts, and needs no clock."""

from collections.abc import Sequence

import numpy as np

from train.baselines.subprocess_engine import SubprocessEngine
from train.common.atomic import append_rows, read_rows
from train.common.generations import batches, capped, places, seed_of, write
from train.common.job import Job
from train.common.progress import track
from train.common.rows import HoldoutText
from train.data.prompts import Prompt
from train.evaluation.live import LARGE
from train.replay.pricing import handoff_seconds

Columns = dict[str, np.ndarray]
FIELDS = ("large_share", "loss", "regret", "guarded")


def write_texts(job: Job, decoders: dict[str, object], setting: str) -> dict[str, list[dict]]:
    """Per decoder a row (``HoldoutText``) for each held-out prompt, in their order; one of ``decoders`` is "large".

    Where texts are drawn, those of a second text for each prompt follow, and so on up to ``job.seeds``.
    Whole batches are appended to texts.jsonl; those that it holds of the same ``setting`` are not written again.
    """
    prompts, path = job.splits["holdout"], job.folder / "texts.jsonl"
    at, grouped = places(prompts), batches(prompts)
    rows = (row for row in read_rows(path, HoldoutText) if row["setting"] == setting)
    done = {(row["method"], row["id"], row.get("text", 0)): row for row in rows}
    missing = [
        (name, some, text)
        for some in grouped  # judged one after the other, so that a prompt is read once
        for text in range(job.seeds)
        for name in sorted(decoders, key=lambda name: name != LARGE)  # the others are judged against its texts
        if any((name, p.id, text) not in done for p in some)
    ]
    for name, some, text in track(missing, "hold-out, texts in batches"):
        rows, texts = [], _written(job, decoders[name], some, seed_of(text, at[some[0].id]))
        for prompt, (answer, writers) in zip(some, texts, strict=True):
            reference = answer if name == LARGE else done[LARGE, prompt.id, text]["answer"]
            row = {"id": prompt.id, "method": name, "setting": setting, "answer": answer, "writers": writers}
            row |= {"text": text} if job.seeds > 1 else {}
            row["large_share"] = float(np.mean(np.array(writers) == len(decoders[name].models) - 1)) if writers else 1.0
            rows.append(row | job.metric(prompt, answer, reference)._asdict())
        append_rows(path, rows)
        done |= {(name, row["id"], text): row for row in rows}
    return {name: [done[name, p.id, text] for text in range(job.seeds) for p in prompts] for name in decoders}


def _written(job: Job, decoder, prompts: Sequence[Prompt], seed: int) -> list[tuple[list[int], list[int]]]:
    if isinstance(decoder, SubprocessEngine):
        return [(decoder.answer(prompt.ids, job.new)[0], []) for prompt in prompts]
    return write(decoder, prompts, job.new, job.sampling, seed)


def columns(job: Job, rows: Sequence[dict]) -> Columns:
    """Arrays [prompts] of the rows of one decoder: its tokens, the large model's share of them, loss, regret, guarded.

    Besides ``score`` (NaN without a grader), ``capped`` (whether the length cap ended it) and ``priced`` (seconds, if
    it is a hand-off), ``priced_first`` of the first text, which may be timed. Of several texts they are the mean.
    """
    prompts = job.splits["holdout"] * job.seeds
    found = {name: [row[name] for row in rows] for name in FIELDS}
    found["tokens"] = [len(row["answer"]) for row in rows]
    found["score"] = [np.nan if row.get("score") is None else row["score"] for row in rows]
    found["capped"] = [capped(job.large, row["answer"], job.new) for row in rows]
    found["priced"] = [
        handoff_seconds(len(p.ids), row["writers"], job.cost) for p, row in zip(prompts, rows, strict=True)
    ]
    texts = {name: np.array(values, float).reshape(job.seeds, -1) for name, values in found.items()}
    return {name: values.mean(0) for name, values in texts.items()} | {"priced_first": texts["priced"][0]}
