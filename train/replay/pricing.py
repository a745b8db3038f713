"""Prices texts at measured timing tables: the seconds of the forwards that each text took, without a clock.

Overheads outside of forwards are left out. Priced times need no quiet machine, and many texts can be written at once.
"""

from collections.abc import Sequence

import numpy as np
import torch

from decoding import Sampling, generate
from decoding.cost.costs import ModelCosts
from train.data.prompts import Prompt
from train.quality.metric import QualityMetric


def alone(prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], cost: ModelCosts) -> dict[str, np.ndarray]:
    """Priced seconds and tokens [n] of answers that the large model writes alone."""
    tokens = np.array([len(a) for a in answers])
    return {"seconds": cost.text(-1, [len(p.ids) for p in prompts], tokens), "tokens": tokens}


def handoff(prompts: Sequence[Prompt], writers: Sequence[Sequence[int]], cost: ModelCosts) -> dict[str, np.ndarray]:
    """Priced seconds and tokens [n] of hand-off texts, of which ``writers`` gives the model of each token."""
    taken = [handoff_seconds(len(p.ids), own, cost) for p, own in zip(prompts, writers, strict=True)]
    return {"seconds": np.array(taken), "tokens": np.array([len(own) for own in writers])}


def judged(
    metric: QualityMetric,
    prompts: Sequence[Prompt],
    texts: Sequence[tuple[list[int], list[int]]],
    references: Sequence[list[int]],
    cost: ModelCosts,
) -> dict[str, np.ndarray]:
    """Columns [n] of hand-off texts (tokens, writers): seconds, tokens, those by the large model, loss, regret."""
    rows = []
    for prompt, (answer, writers), reference in zip(prompts, texts, references, strict=True):
        taken = handoff_seconds(len(prompt.ids), writers, cost)
        rows.append((taken, len(answer), sum(writers), *metric(prompt, answer, reference)[:2]))
    return dict(zip(("seconds", "tokens", "large", "loss", "regret"), np.array(rows, float).T, strict=True))


def handoff_seconds(prompt: int, writers: Sequence[int], cost: ModelCosts) -> float:
    """Seconds of a text after ``prompt`` tokens; ``writers`` gives the model of each token, an index of the costs.

    A model is called for every token that it or a larger one wrote, and reads all tokens since its last call. In a
    batch, the other rows are supposed to call it as often.
    """
    calls = [np.flatnonzero(np.array(writers) >= i) for i in range(len(cost.tables))]
    reads = [np.diff(positions, prepend=-prompt) for positions in calls]
    return sum(float(cost.joined(i, read, len(read) / len(writers)).sum()) for i, read in enumerate(reads) if len(read))


def draft_seconds(decoder, prompt: int, row: dict, cost: ModelCosts) -> float:
    """Seconds of a text that was drafted and verified, as if all its rounds were of the mean size.

    ``row`` counts ``target_calls``, ``drafted`` and ``verified`` tokens.
    """
    rounds = row["target_calls"]
    width = row["verified"] / rounds
    target = cost.share(-1, prompt + width) + (rounds - 1) * cost.share(-1, 1 + width)
    if len(decoder.models) == 1:
        return float(target)
    # A tree has as many nodes on a level as were verified for each token of its depth.
    level = getattr(decoder, "beams", max(1.0, row["verified"] / max(1.0, row["drafted"])))
    # A stop that drops its token has cost a forward for it.
    dropped = getattr(decoder, "stop", None) is not None and not decoder.keep_stop_token
    calls = row["drafted"] + rounds * dropped
    # The first forward of a round reads one text, later ones a level of beams.
    first, (one, beams) = min(rounds, calls), (cost.share(0, n) for n in (1, level))
    draft = cost.share(0, prompt) - one + first * one + (calls - first) * beams
    return float(target + float(draft))


def decoded(
    decoder,
    prompt: Prompt,
    reference: list[int],
    metric: QualityMetric,
    cost: ModelCosts,
    budget: int,
    sampling: Sampling = Sampling(),
    seed: int = 0,
) -> tuple[float, int, float]:
    """(seconds, tokens, loss) of one text by ``decoder``, priced by what each of its forwards read."""
    ids = torch.tensor([prompt.ids], device=decoder.models[-1].device)
    result = generate(decoder, ids, max_new_tokens=budget, sampling=sampling, seed=seed)
    answer = result.sequences[0, ids.shape[1] :].tolist()
    taken = sum(float(cost.share(model, reads).sum()) for model, reads in enumerate(result.reads))
    return taken, len(answer), metric(prompt, answer, reference)[0]
