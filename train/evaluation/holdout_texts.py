"""Texts of held-out prompts, written in batches and judged: a loss takes many prompts, and needs no clock."""

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np

from train.common.atomic import append_rows, read_rows
from train.common.generations import batches, capped, places, seed_of, text_of
from train.common.job import Job
from train.common.rows import HoldoutText
from train.evaluation.live import LARGE
from train.evaluation.text_shards import OWN, TextBatch, written
from train.replay.pricing import handoff_seconds
from train.workers.blueprint import Blueprint

Columns = dict[str, np.ndarray]
FIELDS = ("large_share", "loss", "regret", "guarded")


def write_texts(job: Job, decoders: dict[str, Blueprint], setting: str) -> dict[str, list[dict]]:
    """Per decoder a row (``HoldoutText``) for each held-out prompt, in their order; one of ``decoders`` is "large".

    Where texts are drawn, those of a second text for each prompt follow, and so on up to ``job.seeds``.
    Whole batches are appended to texts.jsonl; those that it holds of the same ``setting`` are not written again.
    """
    prompts, path = job.splits["holdout"], job.folder / "texts.jsonl"
    rows = (row for row in read_rows(path, HoldoutText) if row["setting"] == setting)
    done = {(row["method"], row["id"], row.get("text", 0)): row for row in rows}
    others = {name: one for name, one in decoders.items() if name != LARGE}
    here = {name: one for name, one in others.items() if not one.portable}
    everywhere = {name: one for name, one in others.items() if one.portable}
    title = "hold-out, texts in batches"
    # The others are judged beside the large model's texts.
    for some, what in (({LARGE: decoders[LARGE]}, f"{title}, large model"), (everywhere, title), (here, title)):
        for batch, texts in written(job, what, some, _missing(job, some, done), setting):
            number = text_of(batch.seeds[0])
            found = [
                {"id": p.id, "method": batch.decoder, "setting": setting}
                | ({"text": number} if job.seeds > 1 else {})
                | text
                for p, text in zip(batch.prompts, texts, strict=True)
            ]
            append_rows(path, found)
            done |= {(batch.decoder, row["id"], number): row for row in found}
    return {name: [done[name, p.id, text] for text in range(job.seeds) for p in prompts] for name in decoders}


def _missing(job: Job, decoders: Iterable[str], done: dict[tuple[str, str, int], dict]) -> dict[int, TextBatch]:
    """By number the batches of which ``done`` lacks a text, one prompt after the other, so that each is read once."""
    prompts = job.splits["holdout"]
    at, found = places(prompts), {}
    for number, (some, text, name) in enumerate(product(batches(prompts), range(job.seeds), decoders)):
        if any((name, p.id, text) not in done for p in some):
            own = OWN if name == LARGE else [done[LARGE, p.id, text]["answer"] for p in some]
            found[number] = TextBatch(name, some, [seed_of(text, at[some[0].id])], own)
    return found


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
