"""How often a drafter says what the target says, and what that is worth to speculative decoding."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from train.distillation.batches import batches, pad

EVALUATION_TOKENS = 1024
"""tokens of a batch: its logits over the whole vocabulary are in memory"""


def expected_accepted(runs: Iterable[np.ndarray], length: int) -> float:
    """Mean accepted tokens per round of greedy speculative decoding with drafts of ``length`` tokens.

    runs: bool [n] per answer, where the drafter's best token is the target's, the text read as written. For greedy
    answers that replays decoding exactly: a round accepts up to the first disagreement, and the target writes one
    token more (Leviathan et al., 2211.17192). NaN without any token.
    """
    accepted = []
    for agree in runs:
        at = 0
        while at < len(agree):
            run = agree[at : at + length]
            kept = len(run) if run.all() else int(run.argmin())
            accepted.append(kept)
            at += kept + 1
    return float(np.mean(accepted)) if accepted else float("nan")


@torch.inference_mode()
def agreements(model, store, indices: Iterable[int]) -> list[np.ndarray]:
    """Per sequence ``indices`` of ``store``: bool [n], where in its answer the best tokens of both models are equal."""
    indices = sorted(indices)
    training = model.training
    model.eval()
    runs = []
    for batch in batches([store.sequences[i] for i in indices], EVALUATION_TOKENS):
        some = [indices[j] for j in batch]
        ids = pad([store.sequences[i].ids for i in some]).to(model.device)
        best = model(ids, use_cache=False).logits.argmax(-1).cpu().numpy()
        for row, index in zip(best, some, strict=True):
            answer = slice(store.sequences[index].first, len(store.sequences[index].ids) - 1)
            runs.append(row[answer] == store.labels(index)[0][answer, 0])
    model.train(training)
    return runs


def held_out_report(model, store, held: Iterable[int], length: int = 4) -> dict[str, float | int | None]:
    """``heldout_agreement`` (share of positions), ``accepted_at_length_4`` (tokens a round), ``heldout_tokens``.

    Answers sampled at a temperature count as text to predict: there the accepted tokens are an estimate. None where
    nothing is held out.
    """
    runs = agreements(model, store, held)
    right = np.concatenate(runs) if runs else np.zeros(0, bool)
    return {
        "heldout_agreement": float(right.mean()) if len(right) else None,
        f"accepted_at_length_{length}": expected_accepted(runs, length) if len(right) else None,
        "heldout_tokens": len(right),
    }
