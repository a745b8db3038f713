"""Messages in the forms that people have them, and what stands beside them."""

import json

import pytest
from chat_templates import CHAT, CHATML, DATED, GEMMA, chat_tokenizer, refused, written
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.messages import read_messages
from train.data.prompts import PromptError, PromptOptions, load_prompts

TEXT = {"role": "user", "content": "hi"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
AS_JSON = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
RESULT = {"role": "tool", "content": "2"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
CALLED = '<user>hi<end><assistant><call>add {"a": 1}</call><end><tool>2<end><assistant>'


FORMS = {
    "null content and a call": ([TEXT, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT], CALLED),
    "no content and a call": ([TEXT, {"role": "assistant", "tool_calls": [CALL]}, RESULT], CALLED),
    "arguments as JSON": ([TEXT, {"role": "assistant", "content": "", "tool_calls": [AS_JSON]}, RESULT], CALLED),
    "the call itself": ([TEXT, {"role": "assistant", "tool_calls": [CALL["function"]]}, RESULT], CALLED),
    "function_call": (
        [
            TEXT,
            {"role": "assistant", "content": None, "function_call": AS_JSON["function"]},
            RESULT | {"role": "function"},
        ],
        CALLED,
    ),
    "text and a call": (
        [TEXT, {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]}, RESULT],
        CALLED.replace("<assistant><call>", "<assistant>Let me see.<call>"),
    ),
    "parts": (
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "one"}, {"type": "input_text", "text": "two"}, "three"],
            }
        ],
        "<user>one\ntwo\nthree<end><assistant>",
    ),
    "developer": (
        [{"role": "developer", "content": "be short"}, TEXT],
        "<system>be short<end><user>hi<end><assistant>",
    ),
    "to be continued": ([TEXT, {"role": "assistant", "content": "Well, "}], "<user>hi<end><assistant>Well, "),
    "an empty result": (
        [TEXT, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": ""}],
        CALLED.replace("<tool>2", "<tool>"),
    ),
}


@pytest.mark.parametrize(("messages", "text"), FORMS.values(), ids=FORMS)
def test_messages_read_as_the_template_reads_them(tmp_path, messages, text):
    assert written(tmp_path, {"messages": messages})[0] == text
    assert written(tmp_path, {"prompt": messages})[0] == text


def test_a_developer_is_kept_where_the_template_knows_one(tmp_path):
    tokenizer = chat_tokenizer("{# developer #}" + CHATML)
    text, _ = written(tmp_path, {"messages": [{"role": "developer", "content": "be short"}, TEXT]}, tokenizer)
    assert text == "<developer>be short<end><user>hi<end><assistant>"


def test_sharegpt_loses_the_answer_and_openai_batches_are_unwrapped(tmp_path):
    turns = [("system", "be short"), ("human", "hi"), ("gpt", "hello"), ("human", "more"), ("gpt", "the answer")]
    line = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    said = "<system>be short<end><user>hi<end><assistant>hello<end><user>more<end><assistant>"
    assert written(tmp_path, line) == (said, [])
    body = {"model": "m", "messages": [{"role": "system", "content": "be short"}, TEXT], "tools": [TOOL]}
    line = {"custom_id": "request-7", "method": "POST", "url": "/v1/chat/completions", "body": body}
    text, notes = written(tmp_path, line)
    assert text == f"<tools>{json.dumps([TOOL])}</tools><system>be short<end><user>hi<end><assistant>"
    assert len(notes) == 1 and "prompts.jsonl: model not read" in notes[0]
    assert load_prompts(tmp_path / "prompts.jsonl", CHAT, note=str)[0].id == "request-7"


def test_what_stands_beside_the_messages_reaches_the_template(tmp_path):
    line = {"prompt": "hi", "system": "be short", "tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}}
    text, notes = written(tmp_path, line)
    assert text == f"<tools>{json.dumps([TOOL])}</tools><system>be short<end><user>hi<end><assistant><think></think>"
    assert not notes
    thinks = '{"enable_thinking": false}'
    assert written(tmp_path, {"prompt": "hi"}, chat_template_kwargs=thinks)[0].endswith("<think></think>")
    assert not written(
        tmp_path, line | {"chat_template_kwargs": {"enable_thinking": True}}, chat_template_kwargs=thinks
    )[0].endswith("<think></think>")


def test_what_is_not_read_is_named_once(tmp_path):
    path, notes = tmp_path / "prompts.jsonl", []
    path.write_text("".join(json.dumps({"prompt": p, "answer": "4", "source": "s"}) + "\n" for p in "abc"))
    how = PromptOptions(chat_template_kwargs='{"enable_thinkin": false}')
    assert [p.text for p in load_prompts(path, CHAT, options=how, note=notes.append)] == ["a", "b", "c"]
    assert [note.split("prompts.jsonl: ")[1] for note in notes] == [
        "answer not read; --columns says what makes a prompt",
        "3 of 3 prompts: the chat template reads no 'enable_thinkin', which is given",
    ]


def test_a_template_that_drops_the_system_message_is_named(tmp_path):
    silent = chat_tokenizer("{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    text, notes = written(tmp_path, {"system": "be short", "prompt": "hi"}, silent)
    assert text == "<user>hi" and "1 of 1 prompts: the chat template leaves out a system message" in notes[0]
    text, notes = written(tmp_path, {"system": "be short", "prompt": "hi"}, silent, system="merge")
    assert (text, notes) == ("<user>be short\n\nhi", [])


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ({"messages": [TEXT, {"role": "assistant", "content": ""}]}, "message 2 is"),
        ({"messages": [TEXT, {"role": "assistant", "tool_calls": [CALL]}]}, "has no text to continue"),
        ({"messages": [TEXT, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]}, "valid JSON"),
        ({"messages": [TEXT, {"role": "assistant", "tool_calls": "f"}]}, "'tool_calls' 'f'; it must be a list"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only parts of text"),
        ({"conversations": [{"from": "ghost", "value": "boo"}]}, "message 1 is"),
        ({"conversations": [{"from": "gpt", "value": "boo"}]}, "'conversations' is []"),
        ({"prompt": "a", "system": 3}, "'system' is 3"),
        ({"prompt": "a", "tools": ["f"]}, "'tools' is ['f']; it must be a list of objects"),
        ({"prompt": "a", "chat_template_kwargs": "x"}, "it must be an object"),
        ({"prompt": "a", "chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "must not bring a 'chat_template'"),
        ({"prompt": "a", "chat_template_kwargs": {"tokenize": True}}, "'tokenize' is not free to set"),
        ({"system": "a", "messages": [{"role": "system", "content": "b"}, TEXT]}, "begin with one"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "'messages' holds half a surrogate pair"),
    ],
)
def test_messages_that_no_template_could_read_are_refused(tmp_path, line, fault):
    assert fault in refused(tmp_path, line)


def test_tools_need_a_template(tmp_path):
    plain = chat_tokenizer(None)
    assert "tools need a chat template" in refused(tmp_path, {"prompt": "a", "tools": [TOOL]}, plain)
    assert written(tmp_path, {"prompt": "a", "system": "b"}, plain)[0] == "b\n\na"


TEXTS = st.text(max_size=8) | st.sampled_from(["hi", "be short", "{}", '{"a": 1}'])
PARTS = st.fixed_dictionaries({"type": st.sampled_from(["text", "input_text", "image"]), "text": TEXTS})
CALLS = st.fixed_dictionaries({"name": TEXTS}, optional={"arguments": TEXTS | st.dictionaries(TEXTS, st.integers())})
MESSAGES = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "developer", *["user", "assistant", "tool"] * 3, "function", "robot"]),
        "content": st.sampled_from(["hi", "be short"]) | TEXTS | st.none() | st.lists(TEXTS | PARTS, max_size=2),
    },
    optional={
        "tool_calls": st.lists(st.fixed_dictionaries({"function": CALLS}) | CALLS, max_size=2) | TEXTS,
        "function_call": CALLS | st.none(),
        "reasoning_content": TEXTS,
        "name": TEXTS | st.none(),
    },
)
SHAREGPT = st.fixed_dictionaries(
    {"from": st.sampled_from([*["human", "gpt", "tool"] * 4, "x"]), "value": st.just("hi") | TEXTS}
)
LINES = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGES, max_size=3).map(lambda some: [*some, TEXT]) | st.lists(MESSAGES, max_size=3)},
    optional={"tools": st.lists(st.fixed_dictionaries({"function": CALLS}), max_size=1), "junk": TEXTS},
) | st.fixed_dictionaries({"conversations": st.lists(SHAREGPT, max_size=4)})


@settings(max_examples=200, deadline=None)
@given(LINES, st.sampled_from([CHATML, GEMMA, DATED]))
def test_a_prompt_is_the_templates_own_text_or_one_sentence(tmp_path_factory, line, template):
    path, tokenizer = tmp_path_factory.getbasetemp() / "shapes.jsonl", chat_tokenizer(template)
    path.write_text(json.dumps(line), encoding="utf-8")
    try:
        (prompt,) = load_prompts(path, tokenizer, note=str)
    except PromptError as error:
        assert len(str(error).splitlines()) == 1
        return
    turns = line.get("messages", line.get("conversations"))
    while "conversations" in line and turns[-1]["from"] == "gpt":
        turns = turns[:-1]
    messages = read_messages(turns)
    roles = {"developer": "system"}
    messages = [m | {"role": roles.get(m["role"], m["role"])} for m in messages]
    goes_on = messages[-1]["role"] == "assistant"
    how = {"continue_final_message": goes_on, "add_generation_prompt": not goes_on, "tools": line.get("tools") or None}
    assert list(prompt.ids) == tokenizer.apply_chat_template(messages, return_dict=False, **how)
