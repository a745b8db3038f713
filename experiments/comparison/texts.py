"""The texts of each method and their losses: a jsonl for each method, which survives a kill."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from decoding import LM
from experiments.comparison.methods import Method
from experiments.comparison.settings import ComparisonSettings
from policies.storage import documents
from train.common.atomic import append_rows, read_rows
from train.common.drawing import texts_a_prompt
from train.common.generations import capped, seed_of
from train.common.rows import ComparisonRow
from train.data.prompts import Prompt
from train.data.splits import split_hash
from train.workers.crew import Crew
from train.workers.pair import Pair
from train.workers.stage import Stage
from train.workers.stage_folder import AGAIN


def write_texts(
    config: ComparisonSettings,
    method: Method,
    prompts: Sequence[Prompt],
    folder: Path,
    pair: Pair,
    crew: Crew,
    references: Mapping[str, list[int]],
    text: int = 0,
) -> list[dict]:
    """Rows in the order of ``prompts``, of the text of each that has this number.

    references: the large model's answers by the id of a prompt, none for its own. Whole batches are appended to a file
    in ``folder``/texts; those that it holds are not written again.

    A row: ``prompt`` (hash), ``id``, ``answer`` (token ids), ``writers``, ``loss``, ``regret`` and ``nll``, and
    ``target_calls``, ``drafted`` and ``verified`` (draft tokens that the target read). The engine counts the last two
    per batch, and each text gets a share in proportion to its target calls.
    """
    path = folder / "texts" / file_name(method)
    path.parent.mkdir(exist_ok=True)
    done = {row["prompt"]: row for row in read_rows(path, ComparisonRow) if row.get("text", 0) == text}
    # Batches of similar length.
    todo = sorted((p for p in prompts if split_hash([p]) not in done), key=lambda p: len(p.ids))
    tasks = {
        start: {
            "prompts": [prompt.plain() for prompt in todo[start : start + config.batch]],
            "references": [references[prompt.id] for prompt in todo[start : start + config.batch] if references],
            "seed": config.seed + seed_of(text, len(done) + start),
            "text": text,
        }
        for start in range(0, len(todo), config.batch)
    }
    settings = {
        "method": str(method),
        "identity": method.identity(),
        "max_new_tokens": config.max_new_tokens,
        "sampling": asdict(config.drawing.sampling()),
        "seeds": texts_a_prompt(config),
    }
    stage = Stage("method-texts", str(method), folder, settings, tasks)
    for _, made in crew.made(stage, pair):
        rows = documents.read(made, AGAIN)["rows"]
        append_rows(path, rows)
        done |= {row["prompt"]: row for row in rows}
    return [done[split_hash([p])] for p in prompts]


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
