"""Texts of the Backoff Decoding experiment: written live in batches, measured and kept; a killed run goes on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from decoding.cost.costs import Table
from experiments.backoff_tables.setting import Setting
from train.common.atomic import append_rows, read_rows
from train.common.generations import write
from train.common.progress import track
from train.data.prompts import Prompt
from train.quality.metric import QualityMetric
from train.replay.pricing import handoff_seconds


def write_texts(setting: Setting, name: str, decoder, batch: int, references: Sequence[list[int]] | None) -> list[dict]:
    """A row for each prompt: ``answer``, ``writers``, and loss and regret against ``references``.

    ``references`` are the large model's answers; None when ``decoder`` is the large model. Whole batches are appended
    to texts/``name``.jsonl, and texts that it holds are not written again.
    """
    path = setting.folder / "texts" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {row["id"]: row for row in read_rows(path)}
    prompts = setting.prompts
    starts = [i for i in range(0, len(prompts), batch) if any(p.id not in done for p in prompts[i : i + batch])]
    for start in track(starts, name):
        some = prompts[start : start + batch]
        # Seeded by position: every prompt has its own noise, the same for every method.
        written = write(decoder, some, setting.new, seed=start)
        own = None if references is None else references[start : start + batch]
        rows = [_row(setting, *row) for row in zip(some, written, own or [a for a, _ in written], strict=True)]
        append_rows(path, [row for row in rows if row["id"] not in done])
        done |= {row["id"]: row for row in rows}
    return [done[p.id] for p in prompts]


def _row(setting: Setting, prompt: Prompt, text: tuple[list[int], list[int]], reference: list[int]) -> dict:
    answer, writers = text
    same = answer == reference  # no loss, by definition
    loss, regret = (0.0, 0.0) if same else QualityMetric(setting.models[-1])(prompt, answer, reference)
    return {"id": prompt.id, "answer": answer, "writers": writers, "loss": loss, "regret": regret}


def price_texts(
    rows: Sequence[dict], prompts: Sequence[Prompt], tables: Sequence[Table], decisions: Sequence[float]
) -> dict[str, np.ndarray]:
    """Columns [n]: tokens, those by the large model, runs of tokens by others, priced seconds, loss, regret.

    tables: of the models that take part, cheapest first. decisions: seconds of a decision about each but the last.
    """
    top = len(tables) - 1
    found = []
    for row, prompt in zip(rows, prompts, strict=True):
        writers = np.array(row["writers"])
        asked = [int((writers >= i).sum()) for i in range(top)]
        seconds = handoff_seconds(len(prompt.ids), row["writers"], tables) + float(np.dot(asked, decisions))
        large = writers == top
        runs = int((~large & np.concatenate([[True], large[:-1]])).sum())
        found.append((len(writers), large.sum(), runs, seconds, row["loss"], row["regret"]))
    return dict(zip(("tokens", "large", "runs", "seconds", "loss", "regret"), np.array(found, float).T, strict=True))
