"""Prompts and hand-off traces of any number, without a model: as long and as alike as real ones, and meaningless."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from policies.features.token_classes import BITS
from policies.storage.shards import write_shard
from train.traces.handoff_traces import FEATURE_COLUMNS, open_folder

VOCABULARY = 49_152
FAMILIES = 10
TEMPLATED, ALIKE, UPSTREAM = 0.2, 0.02, 0.2
"""shares of prompts: that begin with their family's template, that vary another prompt, that have a group of several"""
BUDGET = 64
TRACED, FITTED = 0.6, 0.4
"""shares of the prompts that have traces, and that are fitted on, as in the main job"""
KINDS = ("large", "mixed"), ("policy",)
"""the texts of each prompt in the shards of ``collect`` and of one round of ``explore``"""
POOL = 2**16  # rows of which those of all shards are copies


def stand_in(text: str, **_) -> dict[str, list[int]]:
    """A tokenizer: 4 tokens for 3 words of a text, as of the embedded pair's on English."""
    words = text.split()
    return {"input_ids": [len(word) + 97 * i % VOCABULARY for i, word in enumerate(words + words[::3])] or [0]}


def write_prompts(path: Path, count: int, seed: int = 0) -> None:
    """Write ``count`` prompts as JSON lines: 80 words in the mean, of which half have fewer than 45."""
    draw = np.random.default_rng(seed)
    words = np.array([f"{'aeiou'[i % 5]}{'bcdfgklmnprst'[i % 13]}{i:x}" for i in range(50_000)])
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, count, 10_000):
            file.writelines(json.dumps(row) + "\n" for row in _rows(draw, words, start, min(count, start + 10_000)))


def _rows(draw: np.random.Generator, words: np.ndarray, start: int, end: int) -> Iterator[dict]:
    n = end - start
    lengths = np.clip(draw.lognormal(np.log(45), 1.07, n), 3, 1500).astype(int)
    picked = words[np.minimum(draw.zipf(1.3, lengths.sum()) - 1, len(words) - 1)]
    templated, alike, upstream = (draw.random(n) < share for share in (TEMPLATED, ALIKE, UPSTREAM))
    ends, before = np.cumsum(lengths), None
    for i in range(n):
        family = (start + i) % FAMILIES
        own = picked[ends[i] - lengths[i] : ends[i]].tolist()
        if alike[i] and before is not None:
            own = [*before, f"again{start + i}"]
        elif templated[i]:
            own = [f"t{family}w{k}" for k in range(15)] + own
        before = own
        group = {"group": f"g{(start + i) // 3}"} if upstream[i] else {}
        yield {"id": f"p{start + i}", "family": f"family {family}", "prompt": " ".join(own)} | group


def fitted(count: int) -> set[str]:
    """The ids of the prompts that are fitted on."""
    return {f"p{i}" for i in range(int(FITTED * count))}


def write_traces(folder: Path, count: int, shard: int, seed: int = 0) -> None:
    """Write traces of the first share ``TRACED`` of ``count`` prompts, ``shard`` prompts a file."""
    open_folder(folder, {})
    draw, traced, number = np.random.default_rng(seed), int(TRACED * count), 0
    pool = _pool(draw)
    for kinds in KINDS:
        for first in range(0, traced, shard):
            write_shard(folder, number, _shard(draw, pool, range(first, min(traced, first + shard)), kinds))
            number += 1


def _pool(draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Rows, twice over, in which entropy tells regret."""
    n = POOL
    pool = {name: draw.random(n, np.float32) for name in (*FEATURE_COLUMNS, "kl", "small_logprob", "large_logprob")}
    pool |= {f"last_is_{name}": draw.integers(0, 2, n).astype(np.float32) for name in BITS}
    pool |= {name: draw.random(n, np.float32) for name in ("small_logprob_small", "large_logprob_small")}
    pool |= {name: draw.integers(0, VOCABULARY, n) for name in ("token", "small_token", "large_token")}
    agree = draw.random(n) < 0.4
    pool["large_token"][agree] = pool["small_token"][agree]
    pool |= {name: draw.random(n) < 0.01 for name in ("small_repeats", "large_repeats", "small_ends", "large_ends")}
    pool |= {"regret": (4 * pool["entropy"] ** 2 + draw.random(n, np.float32)), "writer": draw.integers(0, 2, n)}
    return {name: np.concatenate([column, column]) for name, column in pool.items()}


def _shard(draw: np.random.Generator, pool: dict, prompts: range, kinds: tuple[str, ...]) -> dict[str, np.ndarray]:
    texts = len(prompts) * len(kinds)
    lengths = np.where(draw.random(texts) < 0.8, BUDGET, draw.integers(4, BUDGET, texts))
    rows = int(lengths.sum())
    at = (int(draw.integers(0, POOL)) + np.arange(rows)) % (2 * POOL)
    position = np.arange(rows) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    names = np.repeat([f"p{i}" for i in prompts], len(kinds))
    unknown = {name: np.where(position == 0, np.float32(np.nan), pool[name][at]) for name in ("agreed", "mean_agreed")}
    return (
        {
            "prompt": np.repeat(names, lengths),
            "group": np.repeat(names, lengths),
            "trajectory": np.repeat(np.tile(kinds, len(prompts)), lengths),
            "prompt_tokens": np.repeat(draw.integers(8, 400, texts), lengths),
            "rate": np.full(rows, 0.5, np.float32),
        }
        | {name: column[at] for name, column in pool.items()}
        | unknown
        | {"position": position.astype(np.float32)}
    )
