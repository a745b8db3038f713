"""Prompts in the forms that people have them: messages, files, tables, templates, and prompts that are too long."""

import datetime as dates
import json
import os
import re
from dataclasses import replace

import pyarrow
import pytest
import transformers.utils.chat_template_utils as chat_template_utils
from chat_templates import CHATML, DATED, GEMMA, chat_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.parquet import write_table

import train.data.options
from train.data.messages import read_messages
from train.data.prompts import PromptError, PromptOptions, load_prompts

CHAT = chat_tokenizer()
TEXT = {"role": "user", "content": "hi"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
AS_JSON = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
RESULT = {"role": "tool", "content": "2"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
CALLED = '<user>hi<end><assistant><call>add {"a": 1}</call><end><tool>2<end><assistant>'


def written(tmp_path, line, tokenizer=CHAT, **how):
    """What the only prompt of a file with this ``line`` reads as, and the notes."""
    path, notes = tmp_path / "prompts.jsonl", []
    path.write_text(json.dumps(line), encoding="utf-8")
    (prompt,) = load_prompts(path, tokenizer, options=PromptOptions(**how), note=notes.append)
    return tokenizer.decode(prompt.ids), notes


def refused(tmp_path, line, tokenizer=CHAT, **how):
    with pytest.raises(PromptError) as error:
        written(tmp_path, line, tokenizer, **how)
    assert "prompts.jsonl, line 1: " in str(error.value) and len(str(error.value).splitlines()) == 1
    return str(error.value).split("line 1: ", 1)[1]


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
    load_prompts(path, CHAT, options=how, note=notes.append)
    assert [note.split("prompts.jsonl: ")[1] for note in notes] == [
        "answer not read; --columns says what makes a prompt",
        "3 of 3: the chat template reads no 'enable_thinkin', which is given",
    ]


def test_a_template_that_drops_the_system_message_is_named(tmp_path):
    silent = chat_tokenizer("{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    text, notes = written(tmp_path, {"system": "be short", "prompt": "hi"}, silent)
    assert text == "<user>hi" and "1 of 1: the chat template leaves out a system message" in notes[0]
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


def test_a_system_message_is_merged_or_dropped_where_the_template_refuses_it(tmp_path):
    gemma, line = chat_tokenizer(GEMMA), {"messages": [{"role": "system", "content": "be short"}, TEXT]}
    fault = refused(tmp_path, line, gemma)
    assert "System role not supported" in fault and "--system merge" in fault and "--system drop" in fault
    assert written(tmp_path, line, gemma, system="merge")[0] == "<user>be short\n\nhi<end><model>"
    assert written(tmp_path, line, gemma, system="drop")[0] == "<user>hi<end><model>"
    fault = refused(tmp_path, {"messages": [TEXT, {"role": "assistant", "content": "add"}, RESULT]}, gemma)
    assert "must alternate" in fault and "--system" not in fault


def test_templates_that_fail_are_one_sentence(tmp_path):
    assert "does not parse (line 1" in refused(tmp_path, {"prompt": "a"}, chat_tokenizer("{% if %}"))
    assert "refuses it ('nothing' is undefined)" in refused(
        tmp_path, {"prompt": "a"}, chat_tokenizer("{{ nothing.x }}")
    )
    several = chat_tokenizer({"b": CHATML, "a": GEMMA})
    assert 'choose one with --chat-template-kwargs \'{"chat_template": "a"}\'' in refused(
        tmp_path, {"prompt": "a"}, several
    )
    chosen = written(tmp_path, {"prompt": "hi"}, several, chat_template_kwargs='{"chat_template": "a"}')
    assert chosen == ("<user>hi<end><model>", [])
    assert "no 'rag'" in refused(tmp_path, {"prompt": "a"}, CHAT, chat_template_kwargs='{"chat_template": "rag"}')


ROWS = [{"prompt": 'a "b", c\nd', "family": "x", "id": "7"}, {"prompt": "é; ü", "family": None, "id": "8"}]
CSV = 'prompt,family,id\r\n"a ""b"", c\nd",x,7\r\n\r\né; ü,,8\r\n'


EXCEL = 'prompt;family;id\r\n"a ""b"", c\nd";x;7\r\n"é; ü";;8\r\n'


def files(folder):
    """The same two prompts in every format of a file."""
    contents = {
        "a.json": json.dumps(ROWS).encode(),
        "bom.json": json.dumps(ROWS, ensure_ascii=False, indent=1).encode("utf-8-sig"),
        "a.jsonl": "\r\n".join(map(json.dumps, ROWS)).encode("utf-16"),
        "big.ndjson": b"\xfe\xff" + "\n".join(map(json.dumps, ROWS)).encode("utf-16-be"),
        "32.jsonl": "\n".join(map(json.dumps, ROWS)).encode("utf-32"),
        "a.csv": CSV.encode(),
        "excel.csv": EXCEL.encode("utf-8-sig"),
        "a.TSV": re.sub(r";(?! )", "\t", EXCEL).encode("utf-16"),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    write_table(pyarrow.Table.from_pylist(ROWS), folder / "a.parquet")
    return [*contents, "a.parquet"]


def test_every_format_and_encoding_gives_the_same_prompts(tmp_path):
    for name in files(tmp_path):
        prompts = load_prompts(tmp_path / name, CHAT, note=pytest.fail)
        assert [(p.id, p.text) for p in prompts] == [("7", 'a "b", c\nd'), ("8", "é; ü")], name
        assert prompts[0].family == "x"
    (tmp_path / "list.json").write_text('["one", {"question": "two"}]')
    assert [(p.id, p.text) for p in load_prompts(tmp_path / "list.json", CHAT)] == [
        ("item-1", "one"),
        ("item-2", "two"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.json", b"[1]", "a.json, item 1: not a JSON object but 1"),
        ("a.json", b'"text"', "a.json: not a list"),
        ("a.json", b'{"train": []}', "a.json: an object with ['train']; write a list"),
        ("a.json", b'{"prompt": "a"}\n{"prompt": "b"}', "a.json: invalid JSON in line 2 (Extra data)"),
        ("a.csv", b"prompt,family\na,b,c\n", "a.csv, line 2: 3 fields, and the header names 2"),
        ("a.csv", b'prompt\n"a', "a.csv, line 2: not valid CSV"),
        ("a.csv", b"label\n1\n", "a.csv, line 2: columns ['label']; one must be named"),
        ("a.csv", b"prompt\n", "a.csv holds no prompts"),
        ("a.csv", b'prompt,id\n"",7\n', "a.csv, line 2: the prompt is empty"),
        ("a.parquet", b"PAR1", "a.parquet is not valid Parquet"),
        (
            "a.txt",
            "ha".encode("utf-16-le"),
            "a.txt, line 1: a NUL, as in UTF-16 without its mark; save the file as UTF-8",
        ),
        ("a.txt", b"\xff\xfea", "a.txt is not valid UTF-16; save the file as UTF-8"),
    ],
)
def test_files_that_cannot_be_read_are_one_sentence(tmp_path, name, content, fault):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError) as error:
        load_prompts(tmp_path / name, CHAT)
    assert fault in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_and_a_device_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    (tmp_path / "b.txt").symlink_to("/dev/zero")
    for name in ("a.jsonl", "b.txt"):
        with pytest.raises(PromptError, match="not a regular file"):
            load_prompts(tmp_path / name, CHAT)


def table(tmp_path, row, **how):
    notes = []
    write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    (prompt,) = load_prompts(tmp_path / "a.parquet", CHAT, options=PromptOptions(**how), note=notes.append)
    return prompt.text, notes


def test_companion_columns_are_joined_or_named(tmp_path):
    dolly = {"instruction": "Summarize the following.", "context": "A text.", "response": "T.", "category": "sum"}
    text, notes = table(tmp_path, dolly)
    assert text == "Summarize the following.\n\nA text."
    assert len(notes) == 1 and "category" in notes[0] and "response" in notes[0] and "--columns" in notes[0]
    assert table(tmp_path, dolly | {"context": ""})[0] == "Summarize the following."
    assert table(tmp_path, dolly, columns=("context", "instruction"))[0] == "A text.\n\nSummarize the following."
    assert table(tmp_path, {"instruction": "Add.", "input": "1, 2"}) == ("Add.\n\n1, 2", [])
    text, notes = table(tmp_path, {"question": "Why?", "passage": "It is."})
    assert text == "Why?" and "passage not read" in notes[0]
    with pytest.raises(PromptError, match=r"no 'passages' among \['question', 'passage'\]"):
        table(tmp_path, {"question": "Why?", "passage": "It is."}, columns=("passages",))


def test_a_table_of_messages_and_of_columns_that_only_sound_familiar(tmp_path):
    answered = [TEXT, {"role": "assistant", "content": "hello"}]
    assert table(tmp_path, {"messages": answered}) == ("hi", [])
    text, notes = table(tmp_path, {"question": "Why?", "documents": ["a"], "system": 3, "family": 4})
    assert text == "Why?" and "documents" in notes[0] and "system" in notes[0]


LENGTHS = ["a b", "c " * 30, "d", "e " * 90]


@pytest.fixture
def some_too_long(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text, "id": str(i)}) + "\n" for i, text in enumerate(LENGTHS)))
    return path


def test_prompts_that_are_too_long_are_skipped_and_counted(some_too_long):
    notes = []
    prompts = load_prompts(some_too_long, CHAT, max_tokens=40, note=notes.append)
    assert [p.id for p in prompts] == ["0", "2"]
    assert notes == [f"{some_too_long}: 2 of 4: more than 40 tokens, skipped (the longest, 3, has 202)"]
    assert [p.id for p in load_prompts(some_too_long, CHAT, 2, 40, note=str)] == [
        "0",
        "2",
    ]  # a limit is met all the same
    with pytest.raises(PromptError, match="line 3: prompt 2, the shortest, has 23 tokens and the limit is 20"):
        load_prompts(some_too_long, CHAT, max_tokens=20, note=str)
    with pytest.raises(PromptError, match="line 2: prompt 1 has 82 tokens and the limit is 40"):
        load_prompts(some_too_long, CHAT, max_tokens=40, options=PromptOptions(too_long="error"))


def test_long_prompts_lose_the_middle_of_their_longest_message(tmp_path):
    path, notes = tmp_path / "prompts.jsonl", []
    path.write_text(json.dumps({"system": "be short", "prompt": "Read: " + "la " * 6000 + "What was it?"}))
    (prompt,) = load_prompts(path, CHAT, None, 300, PromptOptions(too_long="truncate"), notes.append)
    text = CHAT.decode(prompt.ids)
    assert 280 < len(prompt.ids) <= 300 and "1 of 1: more than 300 tokens: the middle is cut out" in notes[0]
    assert text.startswith("<system>be short<end><user>Read: la la") and text.endswith("What was it?<end><assistant>")
    with pytest.raises(PromptError, match="cannot be shortened to 20 tokens"):
        load_prompts(path, CHAT, None, 20, PromptOptions(too_long="truncate"), str)


class Clock(dates.datetime):
    """Stands for datetime on another day."""

    @classmethod
    def now(cls, tz=None):
        return cls.today_


@pytest.fixture
def day(monkeypatch):
    def set_day(number):
        Clock.today_ = dates.datetime(2026, 1, number, 9, 30)
        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        monkeypatch.setattr(train.data.options, "datetime", Clock)

    return set_day


@pytest.mark.parametrize("template", [DATED, {"default": "\n " + DATED}], ids=["one", "named"])
def test_the_date_is_that_of_the_options_and_else_what_the_template_writes(tmp_path, day, template):
    tokenizer, line = chat_tokenizer(template), {"prompt": "hi"}
    day(5)
    today = written(tmp_path, line, tokenizer)[0]
    assert "Today Date: 05 Jan 2026" in today
    assert written(tmp_path, line, tokenizer, date="2026-01-05")[0] == today
    day(6)
    assert written(tmp_path, line, tokenizer, date="2026-01-05")[0] == today
    with pytest.raises(ValueError, match="--date is 'monday'; write it as 2026-01-31"):
        written(tmp_path, line, tokenizer, date="monday")


@pytest.mark.parametrize("directive", ["%d", "%-d", "%B %e %Y", "%A, %H:%M", "%Y-%m-%dT%X", "%j%%", "%y%p%I", "%F"])
def test_a_frozen_clock_says_what_the_real_one_says(tmp_path, day, directive):
    tokenizer = chat_tokenizer("{{ strftime_now('" + directive + "') }}|{{ messages[0].content }}")
    day(9)
    assert written(tmp_path, {"prompt": "hi"}, tokenizer, date=Clock.today_.isoformat()) == written(
        tmp_path, {"prompt": "hi"}, tokenizer
    )


def test_a_run_goes_on_the_next_day(tmp_path, day):
    from tiny_runs import FAST, save_model, word_tokenizer, write_prompts

    from train.common.preparation import prepare
    from train.common.run_folder import read_settings
    from train.common.settings import FitPolicy

    tokenizer = word_tokenizer()
    tokenizer.chat_template = "w{{ strftime_now('%d') | int }} {{ messages[0].content }}"
    for name, layers in (("s", 1), ("l", 2)):
        save_model(tmp_path / name, layers, layers)
        tokenizer.save_pretrained(tmp_path / name)
    prompts = write_prompts(tmp_path / "prompts.jsonl", 12)
    own = FitPolicy(small=str(tmp_path / "s"), large=str(tmp_path / "l"), prompts=prompts, output=tmp_path, **FAST)
    day(5)
    before = prepare(own)
    day(6)
    assert prepare(own).splits == before.splits
    assert {p.ids[0] for p in before.splits["fit"]} == {5}
    assert read_settings(tmp_path / "default").reading.date == "2026-01-05T09:30"
    for change, name in (({"date": "2026-01-06"}, "--date"), ({"system": "drop"}, "--system")):
        with pytest.raises(ValueError, match=f"holds a run with another {name}"):
            prepare(replace(own, reading=PromptOptions(**change)))


TEXTS = st.text(max_size=8) | st.sampled_from(["hi", "be short", "{}", '{"a": 1}'])
PARTS = st.fixed_dictionaries({"type": st.sampled_from(["text", "input_text", "image"]), "text": TEXTS})
CALLS = st.fixed_dictionaries({"name": TEXTS}, optional={"arguments": TEXTS | st.dictionaries(TEXTS, st.integers())})
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "function", "robot"])},
    optional={
        "content": TEXTS | st.none() | st.lists(TEXTS | PARTS, max_size=2) | st.integers(),
        "tool_calls": st.lists(st.fixed_dictionaries({"function": CALLS}) | CALLS, max_size=2) | TEXTS,
        "function_call": CALLS | st.none(),
        "reasoning_content": TEXTS,
        "name": TEXTS | st.none(),
    },
)
SHAREGPT = st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "tool", "x"]), "value": TEXTS})
LINES = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGES, max_size=4)},
    optional={"tools": st.lists(st.fixed_dictionaries({"function": CALLS}), max_size=1), "junk": TEXTS},
) | st.fixed_dictionaries({"conversations": st.lists(SHAREGPT, max_size=4)})


@settings(max_examples=300, deadline=None)
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
