"""Texts of hand-off decoders on the same prompts: written in batches, measured and kept, then priced."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from decoding import Sampling
from decoding.cost.costs import ModelCosts
from train.common.atomic import append_rows, read_rows
from train.common.generations import write
from train.common.progress import track
from train.common.rows import TextRow
from train.data.prompts import Prompt
from train.replay.pricing import handoff_seconds


def write_texts(
    decoder,
    prompts: Sequence[Prompt],
    path: Path,
    new: int,
    batch: int,
    metric: Callable | None = None,
    references: Sequence[list[int]] = (),
    setting: str = "",
    sampling: Sampling = Sampling(),
) -> list[dict]:
    """A row for each prompt: ``answer``, ``writers``, and loss and regret by ``metric(prompt, answer, reference)``.

    references: the large model's answers. Without a metric, for these themselves, both are 0. Whole batches are
    appended to the jsonl ``path``, and texts that it holds of the same ``setting`` are not written again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {row["id"]: row for row in read_rows(path, TextRow) if row["setting"] == setting}
    starts = [i for i in range(0, len(prompts), batch) if any(p.id not in done for p in prompts[i : i + batch])]
    for start in track(starts, path.stem):
        some = prompts[start : start + batch]
        # Seeded by position: every prompt has its own noise, the same for every method.
        texts, rows = write(decoder, some, new, sampling, start), []
        for i, (prompt, (answer, writers)) in enumerate(zip(some, texts, strict=True), start):
            loss, regret = (0.0, 0.0) if metric is None else metric(prompt, answer, references[i])[:2]
            row = {"setting": setting, "id": prompt.id, "answer": answer, "writers": writers}
            rows.append(row | {"loss": loss, "regret": regret})
        append_rows(path, [row for row in rows if row["id"] not in done])
        done |= {row["id"]: row for row in rows}
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
