"""The texts of each method and their losses: a jsonl for each method, which survives a kill."""

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from decoding import LM, Sampling
from experiments.comparison.methods import Method
from experiments.comparison.settings import ComparisonSettings
from train.common.atomic import append_rows, read_rows
from train.common.generations import capped, seed_of, write_with_counts
from train.common.progress import track
from train.common.rows import ComparisonRow
from train.data.prompts import Prompt
from train.data.splits import split_hash


def write_texts(
    config: ComparisonSettings,
    method: Method,
    decoder,
    prompts: Sequence[Prompt],
    path: Path,
    measure: Callable,
    sampling: Sampling,
    text: int = 0,
) -> list[dict]:
    """Rows in the order of ``prompts``, of the text of each that has this number; those in ``path`` are not written.

    A row: ``prompt`` (hash), ``id``, ``answer`` (token ids), ``writers``, the numbers of ``measure(prompt, answer)``,
    and ``target_calls``, ``drafted`` and ``verified`` (draft tokens that the target read). The engine counts the last
    two per batch, and each text gets a share in proportion to its target calls.
    """
    done = {row["prompt"]: row for row in read_rows(path, ComparisonRow) if row.get("text", 0) == text}
    # Batches of similar length.
    todo = sorted((p for p in prompts if split_hash([p]) not in done), key=lambda p: len(p.ids))
    for start in track(range(0, len(todo), config.batch), str(method)):
        some, seed = todo[start : start + config.batch], config.seed + seed_of(text, len(done))
        texts, counts = write_with_counts(decoder, some, config.max_new_tokens, sampling, seed)
        calls = [count_target_calls(method.kind.role, writers) for _, writers in texts]
        drafted, verified = _draft_tokens(method.kind.role, some, calls, counts)
        rows = [
            {
                "prompt": split_hash([prompt]),
                "id": prompt.id,
                "text": text,
                "answer": answer,
                "writers": writers,
                "target_calls": asked,
                "drafted": drafted * asked,
                "verified": verified * asked,
                **measure(prompt, answer),
            }
            for prompt, (answer, writers), asked in zip(some, texts, calls, strict=True)
        ]
        append_rows(path, rows)
        done |= {row["prompt"]: row for row in rows}
    return [done[split_hash([p])] for p in prompts]


def count_target_calls(role: str, writers: Sequence[int]) -> int:
    """Calls of the large model for a text, from the writers of its tokens (0: the first model, 1: the large one).

    A call that verifies a draft commits the accepted tokens and one of the large model's, unless an EOS comes first.
    """
    if role in ("large", "beam"):
        return len(writers)
    return sum(writers) + (role == "draft" and writers[-1] == 0)


def _draft_tokens(role: str, prompts, calls: list[int], counts: dict) -> tuple[float, float]:
    """Tokens drafted, and draft tokens read by the target, per target call of a batch."""
    if role != "draft":
        return 0.0, 0.0
    # Besides drafts, the target reads the prompts once and, in every later call, its own last token.
    own = sum(len(p.ids) for p in prompts) + sum(calls) - len(prompts)
    return counts["drafted"] / sum(calls), (counts["tokens_read"][-1] - own) / sum(calls)


def text_columns(
    large: LM,
    new: int,
    rows: Sequence[dict],
    references: Sequence[dict],
    scores: Sequence[float | None],
    texts: int = 1,
) -> dict[str, np.ndarray]:
    """Arrays [prompts] of the rows' numbers; ``score`` is NaN without a grader, ``same``: the large model's text.

    ``capped``: whether the cap of ``new`` tokens ended it. Of several ``texts`` to each prompt they are the means; the
    rows are those of all prompts, then those of their second texts, and so on.
    """
    fields = ("target_calls", "drafted", "verified", "loss", "regret", "nll")
    found = {field: [row[field] for row in rows] for field in fields}
    found["tokens"] = [len(row["answer"]) for row in rows]
    found["last_model"] = [sum(row["writers"]) for row in rows]
    found["same"] = [row["answer"] == reference["answer"] for row, reference in zip(rows, references, strict=True)]
    found["capped"] = [capped(large, row["answer"], new) for row in rows]
    found["score"] = [np.nan if score is None else score for score in scores]
    return {name: mean_text(values, texts) for name, values in found.items()}


def mean_text(values: Sequence[float], texts: int) -> np.ndarray:
    """[prompts] means of ``values`` [texts * prompts]."""
    return np.array(values, float).reshape(texts, -1).mean(0)


def file_name(method: Method) -> str:
    """A readable name, unique for all that the texts depend on."""
    identity = method.identity()
    readable = re.sub(r"[^\w.=+-]+", "_", str(method))[:80]
    return f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}.jsonl"
