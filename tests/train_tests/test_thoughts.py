"""Thinking models: how much of the large model's answers is thought, counted and said."""

import pytest
from result_specimens import found
from tiny_models import characters

from train.common.result import Thought
from train.data.prompts import Prompt
from train.evaluation.thoughts import measure, thought
from train.reports.page import write_html
from train.reports.tables import thought_line


@pytest.mark.parametrize(
    ("texts", "begun", "tokens", "unfinished"),
    [
        (["<think>", "so", " it", "</think>", "two", "<end>"], False, 4, False),
        (["<th", "ink>so", " it</", "think>", "two"], False, 4, False),  # in several tokens, as of a base model
        (["so", " it", "</think>", "\n\n", "two"], True, 3, False),
        (["so", " it", "", "\n"], True, 4, True),
        (["two", "<think>", "so"], False, 2, True),
        (["<think>", "\n\n", "</think>", "two"], False, 0, False),  # blank: what a template writes to forbid thought
        (["<think>", "a", "</think>", "b", "<think>", "c", "</think>"], False, 6, False),
        (["two", "</think>"], False, 0, False),
        ([], True, 0, False),
    ],
)
def test_tokens_of_thought_are_counted(texts, begun, tokens, unfinished):
    assert measure(texts, begun) == (tokens, unfinished)


def asked(tokenizer, *texts):
    return [
        Prompt(str(i), "a", str(i), text, tuple(tokenizer(text)["input_ids"]), None) for i, text in enumerate(texts)
    ]


def test_a_thought_may_begin_in_the_prompt_but_not_in_the_question():
    tokenizer = characters()
    tokenizer.chat_template = "{% if enable_thinking is false %}<think></think>{% endif %}"
    ids = [tokenizer(text)["input_ids"] for text in ("so</think>2", "<think>é</think>", "two", "two")]
    prompts = asked(tokenizer, "1+1?<think>\n", "1+1?", "say <think> twice", "<think></think>")
    assert thought(tokenizer, prompts, ids) == Thought((10 + 17) / (11 + 17 + 3 + 3), 4, 0)
    assert thought(tokenizer, prompts[2:], ids[2:]) is None
    tokenizer.chat_template = None
    assert thought(tokenizer, prompts, ids) is None  # text about XML
    tokenizer.add_tokens(["<think>", "</think>"])
    ids = [tokenizer(text)["input_ids"] for text in ("<think>so", "<think>so</think>2")]
    assert thought(tokenizer, prompts[1:3], ids) == Thought((3 + 4) / (3 + 5), 2, 1)


def test_the_line_says_how_much_and_what_to_do(tmp_path):
    assert thought_line(found()) is None
    result = found() | {"thought": {"share": 0.834, "answers": 24, "unfinished": 0}}
    assert thought_line(result) == "83% of what the large model wrote is thought (<think>...</think>)."
    result["thought"]["unfinished"] = 5
    assert thought_line(result).endswith("; 5 of 24 answers end within it: raise --max-new-tokens.")
    write_html(result, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<p>83% of what the large model wrote is thought (&lt;think&gt;...&lt;/think&gt;); 5 of 24" in page
