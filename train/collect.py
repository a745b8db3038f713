"""Collect traces: let the models write, then ask both what they thought at every position.

Two trajectories per prompt: the large model alone, and random hand-off at a rate drawn per prompt, so that history
features vary and the states look like deployment.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from decoding import LM, Backoff, Step, generate
from decoding.trail import entropy, repeated
from policies import Random, features, history_for, token_classes
from policies.features import WINDOW
from train.generations import answers
from train.prompts import Prompt
from train.quality import answer_logits, repeats
from train.traces import FEATURE_COLUMNS, open_folder, shard_path, write_shard

SHARD = 8
RATES = (0.1, 0.9)


def collect(
    small: LM, large: LM, prompts: Sequence[Prompt], folder: Path, max_new_tokens: int, seed: int, meta: dict
) -> None:
    """Write the traces of ``prompts`` to ``folder``; shards that are there already are kept."""
    open_folder(folder, meta)
    shards = [prompts[i : i + SHARD] for i in range(0, len(prompts), SHARD)]
    todo = [i for i in range(len(shards)) if not shard_path(folder, i).exists()]
    classes = token_classes(large.tokenizer)
    for i in track(todo, "collecting traces", disable=not todo):
        large_answers = answers(large, shards[i], max_new_tokens)
        rows = []
        for j, (prompt, answer) in enumerate(zip(shards[i], large_answers, strict=True)):
            rate = float(np.random.default_rng([seed, i, j]).uniform(*RATES))
            mixed, writers = _mixed_answer(small, large, prompt, rate, max_new_tokens, seed + i * SHARD + j)
            rows.append(trajectory(small, large, prompt, answer, answer, [1] * len(answer), classes, "large", 1.0))
            rows.append(trajectory(small, large, prompt, mixed, answer, writers, classes, "mixed", rate))
        write_shard(folder, i, {name: np.concatenate([row[name] for row in rows]) for name in rows[0]})


def _mixed_answer(small: LM, large: LM, prompt: Prompt, rate: float, max_new_tokens: int, seed: int):
    ids = torch.tensor([prompt.ids], device=large.device)
    decoder = Backoff([small, large], Random(rate).to(large.device))
    result = generate(decoder, ids, max_new_tokens=max_new_tokens, seed=seed)
    return result.sequences[0, ids.shape[1] :].tolist(), result.writers[0].tolist()


@torch.inference_mode()
def trajectory(
    small: LM,
    large: LM,
    prompt: Prompt,
    answer: list[int],
    reference: list[int],
    writers: list[int],
    classes,
    kind: str,
    rate: float,
) -> dict[str, np.ndarray]:
    """The trace rows of one answer, as columns [n]: the features are those that a policy saw, or would have seen.

    ``reference`` is the large model's own answer.
    """
    q_logits = answer_logits(small, prompt.ids, answer).float()
    p_logits = answer_logits(large, prompt.ids, answer).float()
    q, p = q_logits.log_softmax(-1), p_logits.log_softmax(-1)
    token = torch.tensor(answer, device=q.device)
    best_q, best_p = q.argmax(-1), p.argmax(-1)
    step = _step(q_logits, p_logits, prompt, token, torch.tensor(writers, device=q.device))
    names = FEATURE_COLUMNS
    step.history = _history(features(step, history_for(names)))
    table = features(step, names, history_for(names), classes.to(q.device))
    at = lambda logp, ids: logp.gather(1, ids[:, None]).squeeze(1)  # noqa: E731
    columns = {
        "position": step.position,
        "token": token,
        "writer": torch.tensor(writers),
        "small_token": best_q,
        "large_token": best_p,
        "small_logprob": at(q, token),
        "large_logprob": at(p, token),
        "small_logprob_small": at(q, best_q),
        "large_logprob_small": at(p, best_q),
        "regret": p.amax(-1) - at(p, best_q),
        "kl": (q.exp() * (q - p)).sum(-1),
    } | {name: table[:, i] for i, name in enumerate(names)}
    n = len(answer)
    return {
        "prompt": np.array([prompt.id] * n),
        "group": np.array([prompt.group] * n),
        "trajectory": np.array([kind] * n),
        "small_repeats": repeats(answer, best_q.tolist(), reference),
        "rate": np.full(n, rate, np.float32),
        "prompt_tokens": np.full(n, len(prompt.ids)),
    } | {name: column.cpu().numpy() for name, column in columns.items()}


def _step(q_logits, p_logits, prompt: Prompt, token, writers) -> Step:
    """What a policy saw at each position, from who wrote what: the large model was asked exactly where it wrote."""
    n = len(token)
    position = torch.arange(n, device=token.device)
    asked = torch.where(writers == 1, position, -1).cummax(0).values
    before = torch.cat([asked.new_full((1,), -1), asked[:-1]])
    known = before >= 0
    agreed = (q_logits.argmax(-1) == p_logits.argmax(-1)).float()
    unknown = torch.full((n,), torch.nan, device=token.device)
    return Step(
        logits=q_logits,
        position=position,
        since_large=position - before - 1,
        agreed=torch.where(known, agreed[before.clamp(min=0)], unknown),
        large_entropy=torch.where(known, entropy(p_logits)[before.clamp(min=0)], unknown),
        last_token=torch.cat([token.new_tensor(prompt.ids[-1:]), token[:-1]]),
        uniform=unknown,
        repeated=repeated(token.expand(n, n), position),
    )


def _history(seen: torch.Tensor) -> torch.Tensor:
    """[n, window, k] of [n, k]: what was recorded at the positions before each, NaN before the first."""
    padded = torch.cat([seen.new_full((WINDOW, seen.shape[1]), torch.nan), seen])
    return padded[:-1].unfold(0, WINDOW, 1).transpose(1, 2)
