"""Graders: the embedded references score 1, what has no right answer is not graded, and the command."""

import importlib
import json
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

from experiments.graders import GradeTexts, run
from train.common.cli import InputError
from train.data.prompts import Prompt, load_prompts
from train.quality.graders.chrf import chrf
from train.quality.graders.families import FAMILIES, grade
from train.quality.graders.grader import load_grader
from train.quality.graders.registry import GRADERS
from train.quality.graders.rouge import rouge_l

ROOT = Path(__file__).parents[2]
COUNTS = {"math": 70, "code": 39, "context_qa": 35, "summarization": 27, "factual_qa": 25}
"""embedded prompts that are graded; 1 code prompt holds no example, 1 of summarization no reference"""
overlap = pytest.mark.skipif(
    find_spec("sacrebleu") is None or find_spec("rouge_score") is None, reason="needs the extra [graders]"
)


@pytest.fixture(scope="module")
def embedded():
    return load_prompts(None, None)


def of(prompts, family):
    return [p for p in prompts if p.family == family]


@pytest.mark.parametrize(
    "family",
    ["math", "code", *(pytest.param(f, marks=overlap) for f in FAMILIES if f in COUNTS and f not in ("math", "code"))],
)
def test_every_embedded_reference_scores_1(embedded, family):
    graded = {p.id: grade(p, p.reference) for p in of(embedded, family) if p.reference}
    graded = {name: score for name, score in graded.items() if score is not None}
    without = sum(p.reference is None and grade(p, "x") is not None for p in of(embedded, family))
    assert len(graded) + without == COUNTS[family]
    assert {name: score for name, score in graded.items() if score < 1.0 - 1e-9} == {}


@pytest.mark.parametrize("family", ["math", "code"])
def test_another_prompts_reference_scores_0(embedded, family):
    prompts = [p for p in of(embedded, family) if p.reference and grade(p, "") is not None][:5]
    for own, other in pairwise(prompts):
        assert grade(own, other.reference) == float(family == "math" and own.reference == other.reference)


@pytest.mark.parametrize("family", ["chat", "writing", "roleplay", "continuation", "instruction", "unheard of"])
def test_what_has_no_right_answer_is_not_graded(family):
    assert grade(Prompt("a", family, "a", "Say hello.", (0,), "Hello."), "Hello.") is None


@overlap
@pytest.mark.parametrize("metric", [chrf, rouge_l])
def test_overlap_orders_texts(metric):
    reference = "The committee agreed to fund the new school."
    same, near, far = (
        metric("", reference, t) for t in (reference, "They agreed to fund a school.", "Quick brown fox")
    )
    assert same == pytest.approx(1.0) and 0.0 <= far < near < same
    assert metric("", None, reference) is None and metric("", " ", reference) is None
    assert metric("", reference, "") == 0.0


@overlap
def test_every_family_is_graded_by_what_it_says():
    assert set(FAMILIES.values()) <= set(GRADERS)
    schema = "CREATE TABLE t (a INT); how many rows?"
    assert (
        grade(Prompt("a", "sql", "a", schema, (0,), "SELECT count(*) FROM t"), "SELECT count(a IS NULL) FROM t") == 1.0
    )
    assert grade(Prompt("a", "translation", "a", "Bonjour?", (0,), "Good day"), "Good day") == pytest.approx(1.0)


@pytest.mark.parametrize(("name", "package"), [("chrf", "sacrebleu"), ("rouge", "rouge_score")])
def test_a_missing_package_is_one_sentence(monkeypatch, name, package):
    module = importlib.import_module(f"train.quality.graders.{name}")
    for part in (package, f"{package}.metrics", f"{package}.rouge_scorer"):
        monkeypatch.setitem(sys.modules, part, None)
    getattr(module, f"_{name}").cache_clear()
    with pytest.raises(InputError, match=r"--grader \w+ needs the package [\w-]+; pip install -e '\.\[graders\]'"):
        load_grader(name).check([Prompt("a", "f", "a", "say a", (0,), "a")])


@pytest.fixture
def files(tmp_path):
    """Prompts and texts of a user."""
    prompts, texts = tmp_path / "prompts.jsonl", tmp_path / "texts.jsonl"
    rows = [
        {"id": "a", "prompt": "1 + 1?", "family": "math", "reference": "2"},
        {"id": "b", "prompt": "2 + 1?", "family": "math", "reference": "3"},
        {"id": "c", "prompt": "hello"},
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = [{"id": "a", "text": "It is 2."}, {"id": "b", "text": "It is 2."}, {"id": "c", "text": "hi"}]
    texts.write_text("".join(json.dumps(row) + "\n" for row in answers))
    return prompts, texts


def test_the_command_grades_texts(files, tmp_path, capsys):
    prompts, texts = files
    rows = run(GradeTexts(texts, str(prompts), output=tmp_path / "scores.jsonl"))
    assert [row["score"] for row in rows] == [1.0, 0.0, None]
    assert [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()] == rows
    assert "0.500" in capsys.readouterr().out


def test_the_command_grades_references_and_takes_graders_by_name(files):
    prompts, texts = files
    assert [row["score"] for row in run(GradeTexts(prompts=str(prompts)))] == [1.0, 1.0]
    assert [row["score"] for row in run(GradeTexts(texts, str(prompts), "toy_graders:variety"))] == [1.0, 1.0, 1.0]
    with pytest.raises(InputError, match=r"line 3: --grader math needs a `reference` that holds a number"):
        run(GradeTexts(texts, str(prompts), "math"))
    prompts.write_text("".join(prompts.read_text().splitlines(keepends=True)[:2]))
    texts.write_text("".join(texts.read_text().splitlines(keepends=True)[:2]))
    assert [row["score"] for row in run(GradeTexts(texts, str(prompts), "math"))] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json", "line 2: write"),
        ('{"id": "a"}', "line 2: write"),
        ('{"id": "a", "text": 3}', "line 2: write"),
        ("[1]", "line 2: write"),
        ('{"id": "z", "text": "x"}', "no prompt has the id z"),
    ],
)
def test_wrong_texts_are_one_sentence(files, tmp_path, line, said):
    prompts, texts = files
    texts.write_text('{"id": "a", "text": "2"}\n' + line + "\n")
    with pytest.raises(InputError, match=said):
        run(GradeTexts(texts, str(prompts), output=tmp_path / "scores.jsonl"))
    assert not (tmp_path / "scores.jsonl").exists()


def test_a_score_that_no_file_holds(files, tmp_path):
    with pytest.raises(InputError, match="missing.jsonl"):
        run(GradeTexts(tmp_path / "missing.jsonl", str(files[0])))


def test_the_script_ends_with_code_2():
    script = [sys.executable, str(ROOT / "experiments" / "graders.py"), "--grader", "nothing"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert done.stderr.startswith("graders: the grader 'nothing'") and done.stderr.count("\n") == 1
