"""Prompts that a chat model writes itself: from its template, all different, gone on with after a kill."""

import json

import pytest
from tiny_distillation import make_target

from decoding import LM
from train.distillation.self_prompts import LEAST, user_opening, write_self_prompts

TEMPLATE = "{% for m in messages %}<s> {{ m['role'] }} w3 {{ m['content'] }} </s> {% endfor %}"


@pytest.fixture
def target(tmp_path):
    return LM.load(make_target(tmp_path, TEMPLATE))


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(target, count, path):
    write_self_prompts(target, count, path, max_tokens=40, temperature=2.0, batch=64)


def test_the_opening_is_the_template_up_to_the_users_words(target):
    ids = user_opening(target.tokenizer)
    assert ids[0] == target.tokenizer.bos_token_id
    assert ids[-1] == target.tokenizer.convert_tokens_to_ids("w3")


def test_prompts_are_different_and_a_killed_run_goes_on(target, tmp_path):
    path = tmp_path / "own" / "prompts.jsonl"
    write(target, 5, path)
    first = rows(path)
    with path.open("a") as file:
        file.write('{"id": "half a li')  # a kill
    write(target, 12, path)
    every = rows(path)
    assert every[:5] == first
    assert len({row["prompt"] for row in every}) == len({row["id"] for row in every}) == len(every) == 12
    assert all(len(row["prompt"].split()) >= LEAST for row in every)
    assert max(row["batch"] for row in every) > max(row["batch"] for row in first)
    before = path.read_bytes()
    write(target, 12, path)
    assert path.read_bytes() == before


def test_without_a_template_or_ideas_it_says_so(target, tmp_path):
    with pytest.raises(ValueError, match="writes no new prompts"):
        write_self_prompts(target, 3, tmp_path / "p.jsonl", max_tokens=2, batch=4)
    target.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        user_opening(target.tokenizer)
