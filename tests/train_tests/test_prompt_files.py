"""Prompts in every format of a file, and in tables with columns of their own."""

import json
import os
import re

import pyarrow
import pytest
from chat_templates import CHAT
from pyarrow.parquet import write_table

from train.data.prompts import PromptError, PromptOptions, load_prompts

TEXT = {"role": "user", "content": "hi"}
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
        ("a.csv", b"\nprompt,id,id\na,b,c\n", "a.csv, line 2: the header ['prompt', 'id', 'id'] names a column twice"),
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
    chosen = table(tmp_path, dolly, columns=("context", "instruction"))
    assert chosen == ("A text.\n\nSummarize the following.", [])
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
