"""Texts written in batches, judged, and their time priced: the calls that each took, at a measured timing table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from decoding import LM
from decoding.cost import seconds
from train.prompts import Prompt
from train.quality import end_tokens, guarded_regret, score
from train.replay import Cost


def alone(prompts: Sequence[Prompt], answers: Sequence[list[int]], cost: Cost) -> dict[str, np.ndarray]:
    """Priced seconds and tokens of the large model alone."""
    tokens = np.array([len(a) for a in answers])
    first = seconds(cost.large, [len(p.ids) for p in prompts])
    return {"seconds": first + (tokens - 1) * seconds(cost.large, 1), "tokens": tokens}


def judged(
    large: LM,
    prompts: Sequence[Prompt],
    texts: Sequence[tuple[list[int], list[int]]],
    references: Sequence[list[int]],
    cost: Cost,
) -> dict[str, np.ndarray]:
    """Per text (tokens, who wrote them): priced seconds, tokens, those of the large model, guarded and plain regret."""
    rows = []
    for prompt, (answer, writers), reference in zip(prompts, texts, references, strict=True):
        (one,) = score(large, [prompt.ids], [answer])
        loss = guarded_regret(one, answer, reference, end_tokens(large))
        rows.append((priced(len(prompt.ids), writers, cost), len(answer), sum(writers), loss, one.regret.mean()))
    return dict(zip(("seconds", "tokens", "large", "loss", "regret"), np.array(rows, float).T, strict=True))


def priced(prompt: int, writers: list[int], cost: Cost) -> float:
    """Seconds of a text of which ``writers`` says who wrote each token; the large model reads the gap to its last."""
    asked = np.flatnonzero(writers)
    gaps = np.diff(asked, prepend=-prompt)
    return float(
        seconds(cost.small, prompt) + (len(writers) - 1) * seconds(cost.small, 1) + seconds(cost.large, gaps).sum()
    )
