"""Conversations with tools and turns in a row, under templates shaped like those of published models."""

import json

import pytest
from chat_templates import GEMMA, LLAMA, MISTRAL, QWEN, chat_tokenizer, refused, written

from train.data.turns import forms

TEXT = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "be short"}
RESULT = {"role": "tool", "content": '{"sum": "2"}', "tool_call_id": "abcdefghi"}


def call(name="add", of="abcdefghi"):
    return {"id": of, "type": "function", "function": {"name": name, "arguments": {"a": 1}}}


def asked(*calls, content=None):
    return {"role": "assistant", "content": content, "tool_calls": list(calls or [call()])}


ADD = '{"name": "add", "arguments": {"a": 1}}'
TOOLS = [TEXT, asked(), RESULT]
NATIVE = {
    "Llama 3.1": (
        LLAMA,
        '<user>hi<end><assistant>{"name": "add", "parameters": {"a": 1}}<end>'
        '<ipython>"{\\"sum\\": \\"2\\"}"<end><assistant>',
    ),
    "Qwen2.5": (
        QWEN,
        f'<user>hi<end><assistant><call>{ADD}</call><end><user><response>{{"sum": "2"}}</response><end><assistant>',
    ),
    "Mistral": (MISTRAL, f'[INST] hi[/INST][CALLS]{ADD}</s>[RESULTS]{{"sum": "2"}}[/RESULTS]'),
}


@pytest.mark.parametrize("turns", ["keep", "merge"])
@pytest.mark.parametrize(("template", "text"), NATIVE.values(), ids=NATIVE)
def test_tool_turns_are_passed_to_a_template_that_takes_them(tmp_path, template, text, turns):
    assert written(tmp_path, {"messages": TOOLS}, chat_tokenizer(template), turns=turns) == (text, [])


REFUSED = {
    "Gemma, tools": (
        GEMMA,
        [TEXT, asked(content="Let me see."), RESULT],
        f'<user>hi<end><assistant>Let me see.\n{ADD}<end><user>{{"sum": "2"}}<end><model>',
    ),
    "Gemma, a result and a question": (
        GEMMA,
        [*TOOLS, {"role": "user", "content": "and now?"}],
        f'<user>hi<end><assistant>{ADD}<end><user>{{"sum": "2"}}\n\nand now?<end><model>',
    ),
    "Gemma, an empty result": (
        GEMMA,
        [TEXT, asked(), RESULT | {"content": ""}],
        f"<user>hi<end><assistant>{ADD}<end><user><end><model>",
    ),
    "Mistral, two of the user": (
        MISTRAL,
        [TEXT, {"role": "user", "content": "there"}, asked(), RESULT],
        f'[INST] hi\n\nthere[/INST][CALLS]{ADD}</s>[RESULTS]{{"sum": "2"}}[/RESULTS]',
    ),
    "Mistral, ids of another length": (
        MISTRAL,
        [TEXT, asked(call(of="call_1")), RESULT],
        f'[INST] hi[/INST] {ADD}</s>[INST] {{"sum": "2"}}[/INST]',
    ),
    "Llama 3.1, two calls": (
        LLAMA,
        [TEXT, asked(call("add"), call("sub")), RESULT, RESULT | {"content": "3"}],
        f'<user>hi<end><assistant>{ADD}\n{ADD.replace("add", "sub")}<end><user>{{"sum": "2"}}\n\n3<end><assistant>',
    ),
}


@pytest.mark.parametrize(("template", "messages", "text"), REFUSED.values(), ids=REFUSED)
def test_turns_that_a_template_refuses_are_merged_when_asked(tmp_path, template, messages, text):
    tokenizer, line = chat_tokenizer(template), {"messages": messages}
    fault = refused(tmp_path, line, tokenizer)
    assert "the chat template refuses it" in fault and "; --turns merge joins" in fault and "--system" not in fault
    assert written(tmp_path, line, tokenizer, turns="merge") == (text, [])


def test_joined_turns_of_the_assistant_are_continued(tmp_path):
    line = {"messages": [TEXT, {"role": "assistant", "content": "Well,"}, {"role": "assistant", "content": "it is"}]}
    text, notes = written(tmp_path, line, chat_tokenizer(GEMMA), turns="merge")
    assert text == "<user>hi<end><assistant>Well,\n\nit is" and "is continued" in notes[0]


def test_the_sentence_names_both_options_where_both_are_needed(tmp_path):
    gemma, line = chat_tokenizer(GEMMA), {"messages": [SYSTEM, *TOOLS]}
    fault = refused(tmp_path, line, gemma)
    assert "--system merge" in fault and "--turns merge" in fault
    fault = refused(tmp_path, line, gemma, turns="merge")
    assert "System role not supported" in fault and "--system merge" in fault and "--turns" not in fault
    fault = refused(tmp_path, line, gemma, system="merge")
    assert "must alternate" in fault and "--turns merge" in fault and "--system" not in fault
    text, _ = written(tmp_path, line, gemma, system="merge", turns="merge")
    assert text == f'<user>be short\n\nhi<end><assistant>{ADD}<end><user>{{"sum": "2"}}<end><model>'


def test_no_option_is_named_where_none_helps(tmp_path):
    never = chat_tokenizer("{{ raise_exception('not today') }}")
    fault = refused(tmp_path, {"messages": [SYSTEM, *TOOLS]}, never, turns="merge")
    assert "not today" in fault and fault.endswith("; change its messages")


def test_tool_turns_that_a_template_leaves_out_are_named_and_written_when_asked(tmp_path):
    silent = chat_tokenizer("{% for m in messages if m.role != 'tool' %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    text, notes = written(tmp_path, {"messages": TOOLS}, silent)
    assert text == "<user>hi<assistant>"
    assert len(notes) == 1 and "leaves out a call, text beside it or a result; --turns merge" in notes[0]
    assert written(tmp_path, {"messages": TOOLS}, silent, turns="merge") == (
        f'<user>hi<assistant>{ADD}<user>{{"sum": "2"}}',
        [],
    )


def test_text_beside_a_call_is_not_lost_where_a_template_writes_the_call_alone(tmp_path):
    llama, line = chat_tokenizer(LLAMA), {"messages": [TEXT, asked(content="Let me see."), RESULT]}
    text, notes = written(tmp_path, line, llama)
    assert "Let me see." not in text and "text beside it" in notes[0]
    text, notes = written(tmp_path, line, llama, turns="merge")
    assert f"<assistant>Let me see.\n{ADD}<end><user>" in text and not notes


def test_an_empty_list_of_calls_is_none(tmp_path):
    line = {"messages": [TEXT, {"role": "assistant", "content": "hello", "tool_calls": []}, TEXT]}
    assert written(tmp_path, line, chat_tokenizer(LLAMA))[0] == (
        "<user>hi<end><assistant>hello<end><user>hi<end><assistant>"
    )


def test_joined_turns_keep_their_calls_and_thoughts():
    one = asked(content="a") | {"reasoning_content": "first"}
    other = asked(call("sub"), content="b") | {"reasoning_content": "then"}
    _, joined, text = forms([TEXT, one, other], "merge")
    assert joined[1] == {
        "role": "assistant",
        "content": "a\n\nb",
        "reasoning_content": "first\n\nthen",
        "tool_calls": [call(), call("sub")],
    }
    assert text[1]["content"] == f"a\n{ADD}\n\nb\n{ADD.replace('add', 'sub')}" and "tool_calls" not in text[1]
    assert list(forms([TEXT, one, other], "keep")) == [[TEXT, one, other]]


def test_a_long_conversation_is_cut_in_its_merged_form(tmp_path):
    from train.data.prompts import PromptOptions, load_prompts

    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"messages": [TEXT, asked(), RESULT | {"content": "2 " * 900}]}))
    how = PromptOptions(turns="merge", too_long="truncate")
    (prompt,) = load_prompts(path, chat_tokenizer(GEMMA), None, 200, how, str)
    assert 180 < len(prompt.ids) <= 200 and len(prompt.text) < 200
