"""Shards of traces: which are missing, what each is made of, and where it goes."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from decoding import Sampling
from policies.storage.shards import shard_path, take_shard, write_table
from train.data.prompts import Prompt
from train.workers.crew import Crew
from train.workers.pair import Pair
from train.workers.stage import Stage

SHARD = 8


def shards_of(prompts: Sequence[Prompt]) -> int:
    """Number of shards that ``collect`` fills, and then each round of ``explore``."""
    return math.ceil(len(prompts) / SHARD)


def settings_of(max_new_tokens: int, sampling: Sampling) -> dict[str, Any]:
    """What the shards of traces have in common."""
    return {"max_new_tokens": max_new_tokens, "sampling": asdict(sampling)}


def task_of(prompts: Sequence[Prompt], seed: int) -> dict[str, Any]:
    """What every shard is made of."""
    return {"prompts": [prompt.plain() for prompt in prompts], "seed": seed}


def prompts_of(task: dict[str, Any]) -> list[Prompt]:
    """The prompts in a task."""
    return [Prompt.of(written) for written in task["prompts"]]


def missing_shards(
    folder: Path, prompts: Sequence[Prompt], first: int, size: int = SHARD
) -> dict[int, Sequence[Prompt]]:
    """By number the prompts of the shards of ``size`` prompts, from number ``first`` on, that are not there yet."""
    shards = {first + i // size: prompts[i : i + size] for i in range(0, len(prompts), size)}
    return {i: some for i, some in shards.items() if not shard_path(folder, i).exists()}


def take_tables(stage: Stage, crew: Crew, pair: Pair) -> None:
    """Let ``crew`` make the missing shards, and put each into the folder."""
    for number, path in crew.made(stage, pair):
        take_shard(stage.folder, number, path)
    crew.clear(stage.folder)


def write_rows(path: Path, rows: list[dict[str, np.ndarray]]) -> None:
    """Write the file of a shard."""
    write_table(path, {name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
