"""On-policy rounds: the drafter writes, and the target labels what it wrote.

A drafter trained on the target's text alone has never read its own mistakes, after which it writes the later tokens of
its drafts. GKD (Agarwal et al., 2306.13649) and DistillSpec (Zhou et al., 2310.08461) train on the student's own
samples, labelled by the teacher. Here the drafter writes a few tokens from a random place in the target's answer, its
beginning included, because decoding with two models alternates between them.
"""

import copy
from pathlib import Path

import numpy as np

from decoding.models.lm import LM
from train.data.prompts import Prompt
from train.distillation.answers import write_generations
from train.distillation.batches import Sequence


def write_round(model, tokenizer, sequences: list[Sequence], path: Path, number: int, config) -> None:
    """Let ``model`` write on-policy round ``number`` into the jsonl ``path``; a killed round continues.

    sequences: the training answers, of which a share is drawn by seed and round; config: the resolved settings.
    """
    # A copy, because LM puts a model into evaluation mode and changes its attention.
    drafter = LM(copy.deepcopy(model), tokenizer)
    new, seed = config.on_policy_tokens, (config.seed, number)
    starts = openings(sequences, config.on_policy_share, new, config.max_length, seed)
    prompts = [Prompt(f"on-policy-{number}-{i}", "on-policy", "", "", ids, None) for i, ids in enumerate(starts)]
    write_generations(drafter, prompts, path, new, 1.0, config.answer_batch)


def openings(
    sequences: list[Sequence], share: float, new: int, limit: int, seed: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """Token ids of a prompt and a random beginning of its answer, for a ``share`` of the ``sequences`` with both.

    Each leaves room for ``new`` tokens within ``limit``.
    """
    rng = np.random.default_rng(seed)
    able = [s for s in sequences if s.prompt and s.prompt + new <= limit]
    drawn = rng.permutation(len(able))[: max(1, round(share * len(able)))]
    cuts = [int(rng.integers(able[i].prompt, min(len(able[i].ids), limit - new + 1))) for i in drawn]
    return [tuple(able[i].ids[:cut]) for i, cut in zip(drawn, cuts, strict=True)]
