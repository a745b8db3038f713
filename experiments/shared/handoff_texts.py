"""Texts of a finished run's models on other prompts: priced, compared with the large model's, and kept on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from decoding import Backoff
from policies import Policy
from train.common import atomic
from train.common.generations import write, write_generations
from train.common.load_run import FinishedRun
from train.common.progress import track
from train.data.prompts import Prompt
from train.replay.pricing import judged


def write_references(found: FinishedRun, prompts: list[Prompt], path: Path, batch: int) -> list[list[int]]:
    """The large model's answers; those that ``path`` lacks are written first."""
    write_generations(found.large, prompts, path, found.new, 0.0, batch)
    by_prompt = {tuple(row["prompt_ids"]): row["new_ids"] for row in atomic.read_rows(path)}
    return [by_prompt[p.ids] for p in prompts]


def write_texts(
    found: FinishedRun, policy: Policy, prompts: list[Prompt], references: list[list[int]], path: Path, batch: int
) -> dict[str, np.ndarray]:
    """Priced seconds, tokens, large-model tokens, loss and regret [prompts] of the policy's texts (a line of ``path``
    each); those that ``path`` lacks are written first."""
    setting = f"{policy.describe()} {float(policy.threshold)}"
    done = {row["prompt"]: row["columns"] for row in atomic.read_rows(path) if row["setting"] == setting}
    todo = [(p, r) for p, r in zip(prompts, references, strict=True) if p.id not in done]
    decoder = Backoff([found.small, found.large], policy.to(found.large.device))
    for start in track(range(0, len(todo), batch), path.stem):
        some, own = zip(*todo[start : start + batch], strict=True)
        columns = judged(found.metric, some, write(decoder, some, found.new), own, found.cost)
        rows = [{name: float(column[i]) for name, column in columns.items()} for i in range(len(some))]
        done |= dict(zip((p.id for p in some), rows, strict=True))
        atomic.append_rows(
            path, [{"setting": setting, "prompt": p.id, "columns": row} for p, row in zip(some, rows, strict=True)]
        )
    return {name: np.array([done[p.id][name] for p in prompts]) for name in done[prompts[0].id]}
