"""Texts of hand-off decoders on the same prompts: written in batches, measured and kept, then priced."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from decoding import LM, Sampling
from decoding.cost.costs import ModelCosts
from policies.storage import documents
from train.common.atomic import append_rows, read_rows
from train.common.rows import TextRow
from train.data.prompts import Prompt
from train.evaluation.text_shards import TextBatch
from train.quality.metric import QualityMetric
from train.replay.pricing import handoff_seconds
from train.workers.blueprint import Blueprint
from train.workers.crew import ALONE, Crew
from train.workers.pair import Pair
from train.workers.stage import Stage
from train.workers.stage_folder import AGAIN


def write_texts(
    decoder: Blueprint,
    models: Sequence[LM],
    prompts: Sequence[Prompt],
    path: Path,
    new: int,
    batch: int,
    metric: QualityMetric | None = None,
    references: Sequence[list[int]] = (),
    setting: str = "",
    sampling: Sampling = Sampling(),
    crew: Crew = ALONE,
) -> list[dict]:
    """A row for each prompt: ``answer``, ``writers``, and loss and regret by ``metric(prompt, answer, reference)``.

    models: the pair. references: the large model's answers. Without a metric, for these themselves, both are 0. Whole
    batches are appended to the jsonl ``path``, and texts that it holds of the same ``setting`` are not written again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {row["id"]: row for row in read_rows(path, TextRow) if row["setting"] == setting}
    parts = {i: prompts[i : i + batch] for i in range(0, len(prompts), batch)}
    missing = {i: some for i, some in parts.items() if any(p.id not in done for p in some)}
    # Seeded by position: every prompt has its own noise, the same for every method.
    tasks = {
        i: TextBatch("own", some, [i], None if metric is None else references[i : i + batch]).task()
        for i, some in missing.items()
    }
    sampled = None if metric is None else metric.sampled
    settings = {
        "max_new_tokens": new,
        "sampling": asdict(sampling),
        "seeds": 1 if sampled is None else sampled.seeds,
        "grader": None if metric is None else metric.grader,
        "setting": setting,
    }
    stage = Stage("texts", path.stem, path.parent, settings, tasks, {"own": decoder})
    for i, made in crew.made(stage, Pair(models, metric)):
        rows = [
            {"setting": setting, "id": prompt.id, "answer": row["answer"], "writers": row["writers"]}
            | {name: row.get(name, 0.0) for name in ("loss", "regret")}
            for prompt, row in zip(missing[i], documents.read(made, AGAIN)["rows"], strict=True)
        ]
        append_rows(path, [row for row in rows if row["id"] not in done])
        done |= {row["id"]: row for row in rows}
    crew.clear(path.parent)
    return [done[p.id] for p in prompts]


def price_texts(
    rows: Sequence[dict], prompts: Sequence[Prompt], cost: ModelCosts, decisions: Sequence[float]
) -> dict[str, np.ndarray]:
    """Columns [n]: tokens, those by the large model, runs of tokens by others, priced seconds, loss, regret.

    cost: of the models that take part. decisions: seconds of a decision about each but the last.
    """
    top = len(cost.tables) - 1
    found = []
    for row, prompt in zip(rows, prompts, strict=True):
        writers = np.array(row["writers"])
        asked = [int((writers >= i).sum()) for i in range(top)]
        seconds = handoff_seconds(len(prompt.ids), row["writers"], cost) + float(np.dot(asked, decisions))
        large = writers == top
        runs = int((~large & np.concatenate([[True], large[:-1]])).sum())
        found.append((len(writers), large.sum(), runs, seconds, row["loss"], row["regret"]))
    return dict(zip(("tokens", "large", "runs", "seconds", "loss", "regret"), np.array(found, float).T, strict=True))
