"""Texts of held-out prompts to look at: which model wrote each token under the tuned policy, and at what risk."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from decoding import LM
from decoding.state.streaming import pieces
from policies import Policy, token_classes
from train.common.result import Sample
from train.data.prompts import Prompt
from train.evaluation.live import LARGE
from train.traces.collect_handoff import trajectory

TUNED = "tuned"


def samples(
    models: Sequence[LM], policy: Policy, prompts: Sequence[Prompt], rows: Sequence[dict[str, dict]], count: int = 3
) -> list[Sample]:
    """The shortest of ``prompts`` from ``count`` families; ``rows`` hold the text of each method to each prompt.

    A risk that the policy does not know is None.
    """
    tokenizer, found = models[-1].tokenizer, []
    texts = {prompt.id: methods for prompt, methods in zip(prompts, rows, strict=True)}
    for prompt in _shortest(prompts, texts, count):
        methods = texts[prompt.id]
        answer, writers = methods[TUNED]["answer"], methods[TUNED]["writers"]
        risk = _risk(models, policy, prompt, answer, writers)
        tokens = [list(token) for token in zip(token_texts(tokenizer, answer), writers, risk, strict=True)]
        large = "".join(token_texts(tokenizer, methods[LARGE]["answer"]))
        found.append(Sample(prompt.family, prompt.text, tokens, large))
    return found


def _shortest(prompts: Sequence[Prompt], texts: dict[str, dict[str, dict]], count: int) -> list[Prompt]:
    """One of each family before a second of any."""
    ranked = sorted(prompts, key=lambda p: (len(p.ids) + len(texts[p.id][TUNED]["answer"]), p.id))
    turn = {p.id: sum(q.family == p.family for q in ranked[:i]) for i, p in enumerate(ranked)}
    return sorted(ranked, key=lambda p: turn[p.id])[:count]


def token_texts(tokenizer, answer: list[int]) -> list[str]:
    """The text of each token; special ones are shown by name, so that the end of an answer has a writer too."""
    special = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return [special.get(token, text) for token, text in zip(answer, pieces(tokenizer, answer), strict=True)]


def _risk(models, policy: Policy, prompt: Prompt, answer: list[int], writers: list[int]) -> list[float | None]:
    """The policy's score at every token, from reading the answer again: recording it would have cost timed seconds."""
    if not policy.names:
        return [None] * len(answer)
    small, large = models
    columns = trajectory(small, large, prompt, answer, writers, answer, token_classes(large.tokenizer))
    table = np.stack([columns[name] for name in policy.names], 1).astype(np.float32)
    scores = policy.score_table(torch.from_numpy(table).to(policy.threshold.device)).tolist()
    return [score if math.isfinite(score) else None for score in scores]
