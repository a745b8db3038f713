"""What each method writes on each prompt, and how it was judged: a jsonl per method that survives a kill."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.progress import track

from decoding import LM
from experiments.comparison.methods import Method
from train.common.atomic import append_rows, read_rows
from train.data.prompts import Prompt
from train.data.splits import split_hash


def write_texts(
    method: Method,
    decoder,
    prompts: Sequence[Prompt],
    path: Path,
    max_new_tokens: int,
    batch: int,
    seed: int,
    judge: Callable[[Prompt, list[int]], dict[str, float]],
) -> list[dict]:
    """Rows in the order of ``prompts``; those that ``path`` holds are not written again.

    A row: ``prompt`` (hash), ``id``, ``answer`` (token ids), ``writers``, what ``judge`` says of the answer, and
    ``target_calls``, ``drafted`` and ``verified`` (draft tokens that the target read). The engine counts the last two
    per batch; of these each text has the share of its target calls.
    """
    done = {row["prompt"] for row in read_rows(path)}
    # Side by side in a batch they need to be of similar length.
    todo = sorted((p for p in prompts if split_hash([p]) not in done), key=lambda p: len(p.ids))
    for start in track(range(0, len(todo), batch), str(method), disable=not todo):
        some = todo[start : start + batch]
        append_rows(path, _written(method, decoder, some, max_new_tokens, seed + len(done) + start, judge))
    rows = {row["prompt"]: row for row in read_rows(path)}
    return [rows[split_hash([p])] for p in prompts]


def _written(method, decoder, prompts, max_new_tokens, seed, judge) -> list[dict]:
    from train.common.generations import counted

    texts, counts = counted(decoder, prompts, max_new_tokens, seed=seed)
    calls = [target_calls(method.kind.role, writers) for _, writers in texts]
    drafted, verified = _draft_tokens(method.kind.role, prompts, calls, counts)
    return [
        {
            "prompt": split_hash([prompt]),
            "id": prompt.id,
            "answer": answer,
            "writers": writers,
            "target_calls": asked,
            "drafted": drafted * asked,
            "verified": verified * asked,
            **judge(prompt, answer),
        }
        for prompt, (answer, writers), asked in zip(prompts, texts, calls, strict=True)
    ]


def target_calls(role: str, writers: Sequence[int]) -> int:
    """How often the large model was asked for a text, by who wrote its tokens (0: the first model, 1: the large one).

    A call that checks a draft writes the draft's accepted tokens and one of its own, but for what an EOS cuts off.
    """
    if role in ("large", "beam"):
        return len(writers)
    return sum(writers) + (role == "draft" and writers[-1] == 0)


def _draft_tokens(role: str, prompts, calls: list[int], counts: dict) -> tuple[float, float]:
    """Tokens drafted, and draft tokens read by the target, per target call of a batch."""
    if role != "draft":
        return 0.0, 0.0
    # Beside drafts the target reads the prompts once, and then in every later call the token that it wrote itself.
    own = sum(len(p.ids) for p in prompts) + sum(calls) - len(prompts)
    return counts["drafted"] / sum(calls), (counts["tokens_read"][-1] - own) / sum(calls)


def judged(large: LM, prompt: Prompt, answer: list[int], reference: list[int]) -> dict[str, float]:
    """Guarded regret, mean plain regret and summed negative log-probability of an answer under the large model."""
    from train.quality.guarded_regret import end_tokens, guarded_regret, score

    (one,) = score(large, [prompt.ids], [answer])
    loss = guarded_regret(one, answer, reference, end_tokens(large))
    return {"loss": loss, "regret": float(one.regret.mean()), "nll": float(-one.logprob.sum())}


def columns(rows: Sequence[dict], references: Sequence[dict], scores: Sequence[float | None]) -> dict[str, np.ndarray]:
    """Arrays [prompts] of what the rows hold; ``score`` is NaN where there is no grader, ``same`` against the large."""
    fields = ("target_calls", "drafted", "verified", "loss", "regret", "nll")
    found = {field: np.array([row[field] for row in rows], float) for field in fields}
    found["tokens"] = np.array([len(row["answer"]) for row in rows], float)
    found["last_model"] = np.array([sum(row["writers"]) for row in rows], float)
    pairs = zip(rows, references, strict=True)
    found["same"] = np.array([row["answer"] == reference["answer"] for row, reference in pairs], float)
    found["score"] = np.array([np.nan if value is None else value for value in scores], float)
    return found


def file_name(method: Method) -> str:
    """Readable, and different for everything on which the texts depend."""
    identity = method.identity()
    readable = re.sub(r"[^\w.=+-]+", "_", str(method))[:80]
    return f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}.jsonl"
