"""Agreement of a drafter with its target, and the accepted tokens per round of speculative decoding that it gives."""

from collections.abc import Iterable

import numpy as np
import torch

from train.distillation.batches import batches, pad

EVALUATION_TOKENS = 1024  # tokens of a batch, whose logits over the whole vocabulary are in memory


def expected_accepted(answers: Iterable[np.ndarray], length: int) -> float:
    """Mean accepted tokens per round of greedy speculative decoding with drafts of ``length`` tokens.

    answers: bool [n] each, True where the drafter's best token is the target's. For greedy answers this replays
    decoding exactly: a round accepts up to the first disagreement, and the target writes one token more (Leviathan et
    al., 2211.17192). NaN without any token.
    """
    accepted = []
    for agree in answers:
        at = 0
        while at < len(agree):
            draft = agree[at : at + length]
            accepted.append(len(draft) if draft.all() else int(draft.argmin()))
            at += accepted[-1] + 1
    return float(np.mean(accepted)) if accepted else float("nan")


@torch.inference_mode()
def agreements(model, store, indices: Iterable[int]) -> list[np.ndarray]:
    """Per answer of the sequences ``indices`` of ``store``: bool [n], True where both models' best tokens are equal."""
    indices = sorted(indices)
    training = model.training
    model.eval()
    answers = []
    for batch in batches([store.sequences[i] for i in indices], EVALUATION_TOKENS):
        some = [indices[j] for j in batch]
        ids = pad([store.sequences[i].ids for i in some]).to(model.device)
        best = model(ids, use_cache=False).logits.argmax(-1).cpu().numpy()
        for row, index in zip(best, some, strict=True):
            answer = slice(store.sequences[index].first, len(store.sequences[index].ids) - 1)
            answers.append(row[answer] == store.labels(index)[0][answer, 0])
    model.train(training)
    return answers


def holdout_report(model, store, holdout: Iterable[int]) -> dict[str, float | int | None]:
    """``holdout_agreement`` (share of positions), ``accepted_at_length_4`` (tokens per round), ``holdout_tokens``.

    For answers that were sampled, the accepted tokens are an estimate. None where the hold-out is empty.
    """
    answers = agreements(model, store, holdout)
    agree = np.concatenate(answers) if answers else np.zeros(0, bool)
    return {
        "holdout_agreement": float(agree.mean()) if len(agree) else None,
        "accepted_at_length_4": expected_accepted(answers, 4) if len(agree) else None,
        "holdout_tokens": len(agree),
    }
