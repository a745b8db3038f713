"""Texts written in batches, judged, and their time priced: the calls that each took, at a measured timing table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from decoding import generate
from decoding.cost.timing import seconds
from train.data.prompts import Prompt
from train.quality.metric import QualityMetric
from train.replay.backoff import TimingTables


def alone(prompts: Sequence[Prompt], answers: Sequence[list[int]], cost: TimingTables) -> dict[str, np.ndarray]:
    """Priced seconds and tokens of the large model alone."""
    tokens = np.array([len(a) for a in answers])
    first = seconds(cost.large, [len(p.ids) for p in prompts])
    return {"seconds": first + (tokens - 1) * seconds(cost.large, 1), "tokens": tokens}


def judged(
    judge: QualityMetric,
    prompts: Sequence[Prompt],
    texts: Sequence[tuple[list[int], list[int]]],
    references: Sequence[list[int]],
    cost: TimingTables,
) -> dict[str, np.ndarray]:
    """Per text (tokens, who wrote them): priced seconds, tokens, those of the large model, loss and plain regret."""
    rows = []
    for prompt, (answer, writers), reference in zip(prompts, texts, references, strict=True):
        taken = priced(len(prompt.ids), writers, [cost.small, cost.large])
        rows.append((taken, len(answer), sum(writers), *judge(prompt, answer, reference)))
    return dict(zip(("seconds", "tokens", "large", "loss", "regret"), np.array(rows, float).T, strict=True))


def priced(prompt: int, writers: list[int], tables: Sequence[dict]) -> float:
    """Seconds of a text of which ``writers`` says who wrote each token, at one timing table per model.

    A model is asked for every token that it or a larger one wrote, and reads the gap since it was last asked.
    """
    asked = [np.flatnonzero(np.array(writers) >= i) for i in range(len(tables))]
    return sum(
        float(seconds(table, np.diff(places, prepend=-prompt)).sum())
        for table, places in zip(tables, asked, strict=True)
    )


def decoded(
    decoder,
    prompt: Prompt,
    reference: list[int],
    judge: QualityMetric,
    cost: TimingTables,
    max_new_tokens: int,
    seed: int,
) -> tuple[float, int, float]:
    """(priced seconds, tokens, loss) of what a decoder of two models writes, on its own, by what each of its forwards
    read."""
    ids = torch.tensor([prompt.ids], device=decoder.models[-1].device)
    result = generate(decoder, ids, max_new_tokens=max_new_tokens, seed=seed)
    answer = result.sequences[0, ids.shape[1] :].tolist()
    taken = sum(float(seconds(table, n).sum()) for table, n in zip((cost.small, cost.large), result.reads, strict=True))
    return taken, len(answer), judge(prompt, answer, reference)[0]
