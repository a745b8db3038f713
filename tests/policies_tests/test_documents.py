"""JSON lines of ours: rows come back as they were, an incomplete last line goes, anything else is named by its line."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.storage import documents
from policies.storage.documents import FileError, append_rows, read, read_rows, sealed

ROWS = [{"id": f"p{i}", "loss": 0.1 * i, "answer": [i, i + 1]} for i in range(4)]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@pytest.fixture
def path(tmp_path):
    append_rows(tmp_path / "rows.jsonl", ROWS[:2])
    append_rows(tmp_path / "rows.jsonl", ROWS[2:])
    return tmp_path / "rows.jsonl"


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text().filter(lambda key: key != documents.CHECKSUM), values))
def test_whatever_is_written_is_read_back(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("file") / "x.json"
    path.write_text(json.dumps(sealed(value)))
    assert read(path, "stop") == json.loads(json.dumps(value))


def test_rows_are_read_back_and_a_missing_file_has_none(path):
    assert read_rows(path, "stop") == ROWS
    assert read_rows(path.with_name("none"), "stop") == []


TORN = [b"{", b'{"id": "p4"', b"\0\0\0", b"\xff\xfe", b"garbage\n", b"\0\0\n", b"\n", b'{"id": "p4"\0\0}\n', b"[1]\n"]


@pytest.mark.parametrize("torn", [*TORN, b'{"id": "p9", "checksum": "0123456789abcdef"}\n'], ids=str)
def test_an_incomplete_last_line_goes_with_one_line(path, torn, caplog):
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert read_rows(path, "stop") == ROWS
    (record,) = caplog.records
    assert record.getMessage() == f"{path}: its last line was cut short, by a crash or a full disk; dropped"
    assert path.read_bytes() == whole


def refused(path, *parts):
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(FileError) as caught:
        read_rows(path, "delete it")
    message = str(caught.value)
    assert message.startswith(str(path)) and message.endswith("; delete it") and "\n" not in message
    assert all(part in message for part in parts), message
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize("torn", TORN, ids=str)
def test_garbage_elsewhere_is_named_by_its_line(path, torn):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], torn.rstrip(b"\n") + b"\n", *lines[1:]]))
    refused(path, "line 2:")


def test_a_changed_digit_is_noticed(path):
    path.write_text(path.read_text().replace("0.2", "0.3"))
    refused(path, "line 3: it was changed after it was written")


def test_rows_without_a_checksum_are_taken_as_they_are(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert read_rows(path, "stop") == ROWS


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", documents.LARGEST + 1)
    for name, why in {"folder": "regular", "pipe": "regular", "dangling": "cannot be read", "huge": "bytes"}.items():
        with pytest.raises(FileError, match=why):
            read_rows(tmp_path / name, "delete it")


def test_depth_is_bounded(tmp_path):
    for depth, fine in ((documents.DEEPEST - 1, True), (documents.DEEPEST, False), (900, False), (10**5, False)):
        (tmp_path / "x").write_text('{"a": ' + "[" * depth + "]" * depth + "}")
        if fine:
            read(tmp_path / "x", "stop")
        else:
            with pytest.raises(FileError, match="nested too deep; stop$"):
                read(tmp_path / "x", "stop")
