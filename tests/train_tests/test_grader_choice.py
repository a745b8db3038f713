"""Graders by name: what each needs of the prompts file, what it scores, and that none of them ends a run."""

import json
import sys
from types import SimpleNamespace

import pytest
from tiny_runs import toy_prompts

from train.common.cli import InputError
from train.data.prompts import Prompt, load_prompts
from train.quality.graders import own
from train.quality.graders.grader import load_grader
from train.quality.graders.multiple_choice import chosen
from train.quality.graders.registry import GRADERS, GraderKind

HUMANEVAL = {
    "prompt": 'from typing import List\n\n\ndef add(x: int, y: int) -> int:\n    """Add two numbers."""\n',
    "tests": "def check(candidate):\n    for i in range(3):\n        assert candidate(i, 2) == i + 2\n",
    "entry_point": "add",
}
MBPP = {"prompt": "Write a function double.", "tests": "assert double(2) == 4\nassert double(0) == 0"}
LOOP = {"tests": "for i in range(3):\n    assert double(i) == 2 * i"}
CHOICE = {"prompt": "Which is a fruit?", "choices": ["a stone", "an apple", "a pineapple pie"], "reference": "B"}
MATH = {"prompt": "1 + 1?", "reference": "1 + 1 = 2\n#### 2"}
fenced = "```python\n{}\n```".format


def prompt_of(row, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return load_prompts(path, None)[0]


@pytest.mark.parametrize(
    ("name", "row", "text", "score"),
    [
        ("code", HUMANEVAL, fenced("def add(x, y):\n    return x + y"), 1.0),
        ("code", HUMANEVAL, "    return x + y\n", 1.0),
        ("code", HUMANEVAL, fenced("def add(x, y):\n    return x - y"), 0.0),
        ("code", HUMANEVAL, fenced("import os\ndef add(x, y):\n    os._exit(0)"), 0.0),
        ("code", HUMANEVAL, fenced("def plus(x, y):\n    return x + y"), 0.0),
        ("code", HUMANEVAL, fenced("def helper(): pass") + "\n" + fenced("def add(x, y): return x + y"), 1.0),
        ("code", MBPP, fenced("def double(x):\n    return 2 * x"), 1.0),
        ("code", MBPP, fenced("def double(x):\n    return x + 2"), 0.0),
        (
            "code",
            MBPP | LOOP,
            "def double(i): return i + i",
            1.0,
        ),
        ("code", MBPP | LOOP, "def double(i): return i", 0.0),
        ("code", MBPP, "", 0.0),
        ("math", MATH, "so \\boxed{2}, as 7 is more", 1.0),
        ("math", MATH, "#### 2\n\nI used 5 steps", 1.0),
        ("math", MATH, "first 5, then 2.", 1.0),
        ("math", MATH, "2, not 5", 0.0),
        ("choice", CHOICE, "The answer is (B).", 1.0),
        ("choice", CHOICE | {"reference": "an apple"}, "B. an apple", 1.0),
        ("choice", CHOICE | {"reference": "1"}, "An apple, of course.", 1.0),
        ("choice", CHOICE, "The answer is A", 0.0),
        ("choice", CHOICE, "I do not know.", 0.0),
    ],
)
def test_scores(name, row, text, score, tmp_path):
    grader, prompt = load_grader(name), prompt_of(row, tmp_path)
    grader.check([prompt])
    assert grader(prompt, text) == score and not grader.failed


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("\\boxed{C}", 2),
        ("B) an apple", 1),
        ("**B**", 1),
        ("Answer: C", 2),
        ("A stone is hard, so the answer is (B)", 1),
        ("The answer is B, not C. Final answer: C", 2),
        ("a pineapple pie", 2),
        ("an apple or a stone", None),
        ("One may say (A), but it is (B)", 1),
        ("A fruit is what grows", None),
        ("The answer is a fruit", None),
        ("The answer is D", None),
        ("", None),
    ],
)
def test_the_option_that_an_answer_settles_on(text, place):
    assert chosen(text, CHOICE["choices"]) == place


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("code", {"prompt": "Say hello."}, "--grader code needs `tests`"),
        ("code", {k: v for k, v in HUMANEVAL.items() if k != "entry_point"}, "and an `entry_point`"),
        ("code", HUMANEVAL | {"entry_point": "add(1, 2"}, "and an `entry_point`"),
        ("code", MBPP | {"tests": "assert double(2) = 4"}, "--grader code needs `tests`"),
        ("math", {"prompt": "1 + 1?"}, "--grader math needs a `reference` that holds a number"),
        ("math", {"prompt": "1 + 1?", "reference": "two"}, "needs a `reference` that holds a number"),
        ("choice", {"prompt": "a or b?", "reference": "A"}, "--grader choice needs `choices`"),
        ("choice", CHOICE | {"reference": "D"}, "as `reference` the right one"),
        ("chrf", {"prompt": "Bonjour?"}, "--grader chrf needs a `reference`"),
        ("rouge", {"prompt": "Sum up."}, "--grader rouge needs a `reference`"),
    ],
)
def test_what_a_line_lacks_is_one_sentence(name, row, said, tmp_path):
    with pytest.raises(InputError) as caught:
        load_grader(name).check([prompt_of(row, tmp_path)])
    assert "prompts.jsonl, line 1: " in str(caught.value) and said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"choices": "ab"}, "'choices' is 'ab'; it must be a list of two texts or more"),
        ({"choices": ["a"]}, "it must be a list of two texts or more"),
        ({"choices": ["a", 3]}, "it must be a list of two texts or more"),
        ({"tests": ["assert f()"]}, "'tests' is "),
        ({"entry_point": 3}, "'entry_point' is 3"),
    ],
)
def test_fields_of_other_types_are_refused(row, said, tmp_path):
    with pytest.raises(ValueError, match="line 1: ") as caught:
        prompt_of({"prompt": "a"} | row, tmp_path)
    assert said in str(caught.value)


def test_a_new_grader_is_a_file_and_a_line(monkeypatch):
    capitals = SimpleNamespace(share=lambda prompt, reference, text, choices: float(text.isupper()))
    monkeypatch.setitem(sys.modules, "train.quality.graders.capitals", capitals)
    monkeypatch.setitem(GRADERS, "capitals", GraderKind("capitals:share", "a toy", "`choices`", ("choices",)))
    grader = load_grader("capitals")
    assert [grader(toy_prompts(1)[0], text) for text in ("YES", "no")] == [1.0, 0.0]


def test_every_grader_says_what_it_needs(tmp_path):
    prompt = prompt_of({"prompt": "Say hello."}, tmp_path)
    for name, kind in GRADERS.items():
        assert kind.grade(prompt, "") is None, name
        assert "`" in kind.needs or "`reference`" in kind.needs


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "failed with KeyError: 'no such key', in "),
        ("recurses", "failed with RecursionError"),
        ("exits", "failed with SystemExit: 0, in "),
        ("crashes", "ended its process (code -11)"),
        ("huge", "gave 1000"),
        ("nonsense", "gave 'xxx"),
        ("awaited_later", "gave <coroutine"),
    ],
)
def test_what_fails_costs_its_prompt_and_is_named_once(name, said, capfd):
    grader, (one, other) = load_grader(f"toy_graders:{name}"), toy_prompts(2)
    assert [grader(one, "a"), grader(other, "b"), grader(one, "c")] == [0.0, 0.0, 0.0]
    shown = " ".join(capfd.readouterr().out.split())
    assert shown.startswith(f"the grader toy_graders:{name} {said}") and shown.count("the grader") == 1
    assert "(prompt p0); texts at which it fails score 0" in shown and len(shown) < 500
    assert grader.failed == {"p0", "p1"}


def test_one_that_hangs_is_ended(monkeypatch, capfd):
    monkeypatch.setattr(own, "SECONDS", 1)
    grader, (one, other) = load_grader("toy_graders:hangs"), toy_prompts(2)
    grader.check([one])
    process = grader.grade.process
    assert grader(one, "a") == 0.0 and process.poll() is not None
    assert grader(other, "") == 0.5
    assert "took more than 1 seconds" in " ".join(capfd.readouterr().out.split())


def test_a_failure_takes_no_other_answer_along():
    grader, (one, other) = load_grader("toy_graders:fails_at_w6"), toy_prompts(2)
    assert [grader(one, "w5"), grader(one, "w6"), grader(other, "w7")] == [1.0, 0.0, 1.0]
    assert grader.failed == {"p0"}


def test_one_that_fails_at_every_prompt_is_refused_before_work():
    with pytest.raises(InputError, match="raises failed with KeyError"):
        load_grader("toy_graders:raises").check(toy_prompts(3))


def test_prints_are_no_answers(capfd):
    assert load_grader("toy_graders:prints")(toy_prompts(1)[0], "w5 w6") == 0.5
    assert "graded w5 w6" in capfd.readouterr().err


def test_its_process_ends_with_the_grader():
    grader = load_grader("toy_graders:variety")
    process = grader.grade.process
    grader.grade.channel.close()
    assert process.wait(timeout=10) == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("half", "unknown; it is one of code, math, choice, chrf, rouge, sql, or module:function"),
        ("toy_graders:", "module:function"),
        ("a:b:c", "module:function"),
        ("no_such_module_at_all:f", "PYTHONPATH"),
        ("toy_graders:nothing", "nothing"),
        ("toy_graders:two", "it must take (prompt, reference, text)"),
        ("toy_graders:NO_FUNCTION", "it must take (prompt, reference, text)"),
        ("toy_graders:waits", "is a coroutine; it must return its score"),
    ],
)
def test_a_wrong_name_is_one_sentence(name, said):
    with pytest.raises(InputError) as caught:
        load_grader(name)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["def grade(", "raise SystemExit(0)", "1 / 0", "import os\nos._exit(3)"])
def test_a_module_that_cannot_be_imported(text, tmp_path, monkeypatch):
    (tmp_path / "broken_grader.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("broken_grader", None)
    with pytest.raises(InputError, match="the grader broken_grader:grade cannot be loaded"):
        load_grader("broken_grader:grade")


def test_own_graders_are_checked_at_their_empty_answers():
    long = Prompt("p0", "f", "g", "a b c d e f g", (5,), None)
    with pytest.raises(InputError, match="gives no score to the prompt p0; leave it out"):
        load_grader("toy_graders:none_for_long").check([long])
