"""Prompts: the embedded set, every error. A fake tokenizer stands in for a model's."""

import json
import sys
from collections import Counter
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.prompts import (
    DEFAULT_PROMPTS,
    Prompt,
    PromptError,
    PromptOptions,
    load_prompts,
    template_hash,
)

ALLOWED_LICENCES = {"MIT", "Apache-2.0", "CC0-1.0", "public domain"}


class WordTokenizer:
    """One token per word, its length. With a template, every message costs two tokens more."""

    def __init__(self, chat_template=None):
        self.chat_template = chat_template

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [len(word) for word in text.split()]}

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert add_generation_prompt and not tokenize
        if self.chat_template == "refuse":
            raise RuntimeError("System role\nnot supported")
        return " ".join(f"<{m['role']}> {m['content']}" for m in messages) + " <assistant>"


PLAIN = WordTokenizer()


def write(folder, content, name="prompts.jsonl"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_default_prompts_are_many_unique_and_free():
    rows = [json.loads(line) for line in DEFAULT_PROMPTS.read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 400
    assert {row["license"] for row in rows} <= ALLOWED_LICENCES
    assert all(set(row) == {"id", "family", "prompt", "source", "license", "group", "reference"} for row in rows)
    assert all(row["group"].startswith(row["source"] + ":") for row in rows)
    assert max(len(row["prompt"]) for row in rows) <= 2600


def test_notice_counts_every_source():
    rows = [json.loads(line) for line in DEFAULT_PROMPTS.read_text(encoding="utf-8").splitlines()]
    notice = DEFAULT_PROMPTS.with_suffix(".NOTICE.md").read_text(encoding="utf-8")
    assert f"{len(rows)} prompts" in notice
    for (source, family, licence), count in Counter((r["source"], r["family"], r["license"]) for r in rows).items():
        assert f"| {source} | {count} | {family} | {licence} |" in notice


def test_default_prompts_load():
    prompts = load_prompts(None, PLAIN)
    assert len({p.family for p in prompts}) >= 8
    assert all(p.ids and p.text for p in prompts)
    with pytest.raises(FrozenInstanceError):
        prompts[0].id = "other"


def test_jsonl_fields_and_defaults(tmp_path):
    lines = ['{"prompt": "one two", "id": 7, "family": "math", "group": "g", "reference": "2"}', "", '{"prompt": " a"}']
    first, second = load_prompts(write(tmp_path, "\r\n".join(lines)), PLAIN)
    assert first == Prompt("7", "math", "g", "one two", (3, 3), "2")
    assert second == Prompt("line-3", "default", "line-3", " a", (1,), None)


def test_byte_order_mark_and_last_line_without_newline(tmp_path):
    assert load_prompts(write(tmp_path, b'\xef\xbb\xbf{"prompt": "a"}'), PLAIN)[0].text == "a"


def test_txt_is_one_prompt_per_line_without_blank_lines(tmp_path):
    prompts = load_prompts(str(write(tmp_path, "  one two \n\n\tthree\r\n", "prompts.txt")), PLAIN)
    assert [(p.id, p.text) for p in prompts] == [("line-1", "one two"), ("line-3", "three")]


def test_messages_meet_the_template_and_prompts_too(tmp_path):
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}]
    path = write(tmp_path, json.dumps({"messages": messages}) + '\n{"prompt": "hello"}')
    chat = WordTokenizer("a template")
    assert [len(p.ids) for p in load_prompts(path, chat)] == [6, 3]
    assert [p.text for p in load_prompts(path, chat)] == ["be short\n\nhello", "hello"]
    assert [len(p.ids) for p in load_prompts(path, PLAIN)] == [3, 1]


def test_template_hash_tells_templates_apart():
    assert template_hash(PLAIN) is None
    assert template_hash(object()) is None
    assert len({template_hash(WordTokenizer(t)) for t in ("a", "b", {"default": "a"})}) == 3


def test_limit_takes_families_in_turn(tmp_path):
    lines = [json.dumps({"prompt": f"p{i}", "family": family}) for i, family in enumerate("aaaaabbc")]
    path = write(tmp_path, "\n".join(lines))
    assert [p.family for p in load_prompts(path, PLAIN, limit=6)] == ["a", "b", "c", "a", "b", "a"]
    assert len(load_prompts(path, PLAIN, limit=100)) == 8
    assert load_prompts(path, PLAIN, limit=6) == load_prompts(path, PLAIN, limit=6)


GOOD = b'{"prompt": "fine"}\n'
BAD_LINES = {
    b"\xff": "line 2.*0xff.*UTF-8",
    b"{oops": "line 2.*invalid JSON",
    b"[" * 100_000: "line 2.*invalid JSON",
    b"9" * 5000: "line 2.*invalid JSON",
    b"[1]": "line 2.*not a JSON object.*\\[1\\]",
    b"{}": "line 2.*neither 'prompt' nor 'messages'",
    b'{"prompt": "a", "messages": []}': "line 2.*both 'prompt' and 'messages'",
    b'{"prompt": " \\n"}': "line 2.*prompt is empty",
    b'{"prompt": ["a"]}': "line 2.*'prompt' is \\['a'\\].*string",
    b'{"prompt": "\\ud800"}': "line 2.*'prompt'.*surrogate",
    b'{"prompt": "a", "id": "line-1"}': "line 2.*id line-1.*already.*line 1",
    b'{"prompt": "a", "id": true}': "line 2.*'id' is True",
    b'{"prompt": "a", "family": 3}': "line 2.*'family' is 3.*string",
    b'{"prompt": "a", "group": ""}': "line 2.*'group' is ''.*non-empty",
    b'{"prompt": "a", "reference": 4}': "line 2.*'reference' is 4",
    b'{"messages": []}': "line 2.*'messages' is \\[\\].*list",
    b'{"messages": "hi"}': "line 2.*'messages' is 'hi'.*list",
    b'{"messages": ["hi"]}': "line 2.*message 1 is 'hi'.*'role'",
    b'{"messages": [{"role": "user"}]}': "line 2.*message 1.*'content'",
    b'{"messages": [{"role": ["user"], "content": "a"}]}': "line 2.*message 1.*'role'",
    b'{"messages": [{"role": "robot", "content": "a"}]}': "line 2.*message 1.*system, developer, user",
    b'{"messages": [{"role": "system", "content": "a"}]}': "line 2.*last message.*from the user",
}


def one_sentence(pattern):
    return pytest.raises(PromptError, match=pattern)


def assert_one_line(error):
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(("line", "pattern"), BAD_LINES.items(), ids=range(len(BAD_LINES)))
def test_a_bad_line_is_named(tmp_path, line, pattern):
    with one_sentence("prompts.jsonl, " + pattern) as error:
        load_prompts(write(tmp_path, GOOD + line), PLAIN)
    assert_one_line(error)


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("missing.jsonl", None, "missing.jsonl does not exist"),
        ("missing.json", None, "missing.json does not exist"),
        ("no such thing", None, "no such thing does not exist"),
        ("x" * 5000, None, "does not exist"),
        ("nul\0.jsonl", None, "cannot be read"),
        (".", None, "is a directory"),
        ("prompts.yaml", b"a", "prompts.yaml has an unknown suffix.*jsonl"),
        ("empty.jsonl", b"", "empty.jsonl is empty"),
        ("blank.txt", b"\n \n", "blank.txt holds no prompts"),
        ("bytes.txt", b"a\n\xc3\n", "bytes.txt, line 2.*UTF-8"),
    ],
)
def test_a_bad_source_is_named(tmp_path, name, content, pattern):
    path = str(tmp_path / name) if content is None else write(tmp_path, content, name)
    with one_sentence(pattern) as error:
        load_prompts(path, PLAIN)
    assert_one_line(error)


def test_a_missing_file_is_never_sought_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: pytest.fail("hub")))
    monkeypatch.chdir(tmp_path)
    with one_sentence("data/prompts.json does not exist"):
        load_prompts("data/prompts.json", PLAIN)


def test_all_lines_are_checked_before_the_tokenizer_is_asked(tmp_path):
    with one_sentence("line 2"):
        load_prompts(write(tmp_path, GOOD + b"{}"), None, limit=1)


def test_too_long_a_prompt_names_id_length_and_limit(tmp_path):
    path = write(tmp_path, '{"prompt": "a b c", "id": "long"}')
    assert len(load_prompts(path, PLAIN, max_tokens=3)) == 1
    with one_sentence("line 1.*long has 3 tokens.*limit is 2") as error:
        load_prompts(path, PLAIN, max_tokens=2, options=PromptOptions(too_long="error"))
    assert_one_line(error)


def test_a_template_that_refuses_and_a_prompt_without_tokens(tmp_path):
    with one_sentence("line 1.*chat template refuses.*System role not supported") as error:
        load_prompts(write(tmp_path, GOOD), WordTokenizer("refuse"))
    assert_one_line(error)
    with one_sentence("line 1.*no token"):
        load_prompts(write(tmp_path, GOOD), lambda text: {"input_ids": []})


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_must_be_positive(limit):
    with one_sentence(f"limit is {limit}"):
        load_prompts(None, PLAIN, limit=limit)


class Rows(list):
    @property
    def column_names(self):
        return list(self[0])


def hub(monkeypatch, rows, seen=None):
    def load_dataset(name, config, split):
        if isinstance(rows, Exception):
            raise rows
        if seen is not None:
            seen.append((name, config, split))
        return Rows(rows)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_hub_names_splits_and_configs(monkeypatch):
    seen = []
    hub(monkeypatch, [{"answer": "4", "question": "two and two", "family": 3}], seen)
    sources = ["gsm8k", "o/n-1.5:test", "o/n:main:train[:500]", "o/n:train[:5]"]
    assert {load_prompts(source, PLAIN)[0].text for source in sources} == {"two and two"}
    assert seen == [
        ("gsm8k", None, "train"),
        ("o/n-1.5", None, "test"),
        ("o/n", "main", "train[:500]"),
        ("o/n", None, "train[:5]"),
    ]


def test_hub_messages_lose_the_answer(monkeypatch):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    hub(monkeypatch, [{"messages": turns}])
    assert load_prompts("o/n", PLAIN)[0].text == "hi"


@pytest.mark.parametrize(
    ("rows", "pattern"),
    [
        ([{"label": 1}], "o/n: columns.*label.*question"),
        ([{"prompt": "a"}, {"prompt": ""}], "o/n:train, row 1.*empty"),
        (RuntimeError("config\nname is missing"), "o/n.*config name is missing.*name:config:split"),
    ],
)
def test_hub_errors(monkeypatch, rows, pattern):
    hub(monkeypatch, rows)
    with one_sentence(pattern) as error:
        load_prompts("o/n", PLAIN)
    assert_one_line(error)


def test_hub_without_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with one_sentence("pip install datasets"):
        load_prompts("o/n", PLAIN)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["prompt", "messages", "id", "role", "content", "family"]), inner)
    ),
)


@settings(max_examples=80, deadline=None)
@given(st.binary() | st.lists(JSON.map(json.dumps), max_size=4).map(lambda lines: "\n".join(lines).encode()))
def test_any_bytes_load_or_raise_one_sentence(tmp_path_factory, content):
    path = write(tmp_path_factory.getbasetemp(), content)
    try:
        assert load_prompts(path, PLAIN)
    except PromptError as error:
        assert len(str(error).splitlines()) == 1
