"""Task scores in [0, 1] of answers to prompts whose task says what is right.

    python experiments/graders.py                     # the prompts' own references, which must score 1
    python experiments/graders.py texts.jsonl         # {"id", "text"} rows
    python experiments/graders.py texts.jsonl --prompts mine.jsonl --grader my_module:my_function

Python code in answers is run, with the limits of train/quality/sandbox/sandbox.py.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from policies.storage.atomic import write
from train.common.cli import checking, command
from train.common.progress import track
from train.data.options import PromptOptions, Reading
from train.data.prompts import Prompt, load_prompts
from train.quality.graders.families import FAMILIES, grade
from train.quality.graders.grader import load_grader
from train.reports.terminal import print_rows


@dataclass
class GradeTexts:
    """Grade texts, or if there are none the prompts' own references, which must score 1."""

    texts: Annotated[Path | None, tyro.conf.Positional] = None
    """jsonl of {"id": a prompt's, "text": an answer to it}"""
    prompts: str | None = None
    """prompts as train/fit_policy.py takes them (default: the embedded ones)"""
    grader: str | None = None
    """code, math, choice, chrf, rouge, sql, or module:function of your own, for all prompts (default: by family)"""
    output: Path | None = None
    """write {"id", "family", "grader", "score"} rows to this jsonl"""
    reading: Reading = field(default_factory=PromptOptions)


def run(config: GradeTexts) -> list[dict]:
    """Grade, print and write. Raises InputError for wrong prompts, texts or graders."""
    own = None if config.grader is None else load_grader(config.grader)
    with checking():
        prompts = {p.id: p for p in load_prompts(config.prompts, None, options=config.reading)}
        own_references = [(name, p.reference) for name, p in prompts.items() if p.reference is not None]
        texts = own_references if config.texts is None else read_texts(config.texts, prompts)
        if own is not None:
            own.check(prompts[name] for name in dict(texts))
    rows = []
    for name, text in track(texts, "grading"):
        prompt = prompts[name]
        score = grade(prompt, text) if own is None else own(prompt, text)
        used = config.grader or FAMILIES.get(prompt.family)
        rows.append({"id": name, "family": prompt.family, "grader": used, "score": score})
    show(rows)
    if config.output is not None:
        write(config.output, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return rows


def read_texts(path: Path, prompts: dict[str, Prompt]) -> list[tuple[str, str]]:
    """(id, text) of each line of a jsonl. Raises OSError, and ValueError with the line's number."""
    texts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            name, text = row["id"], row["text"]
        except (ValueError, KeyError, TypeError):
            name = text = None
        if not isinstance(name, str) or not isinstance(text, str):
            raise ValueError(f'{path}, line {number}: write {{"id": "...", "text": "..."}}')
        if name not in prompts:
            raise ValueError(f"{path}, line {number}: no prompt has the id {name}; name the file with --prompts")
        texts.append((name, text))
    return texts


def show(rows: list[dict]) -> None:
    """Print a line for each family and grader."""
    scores = defaultdict(list)
    for row in rows:
        scores[row["family"], row["grader"] or "none"].append(row["score"])
    found = []
    for (family, grader), some in sorted(scores.items()):
        graded = [s for s in some if s is not None]
        mean = f"{sum(graded) / len(graded):.3f}" if graded else "-"
        found.append((family, grader, len(some), len(graded), mean))
    print_rows(("family", "grader", "texts", "graded", "mean score"), found)


main = command(GradeTexts, run, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
