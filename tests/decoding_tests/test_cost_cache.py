"""Files of costs: read back as written, for the same pair only; anything else is one sentence."""

import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import nudged, tiny

from decoding import LM
from decoding.cost import cache
from decoding.cost.costs import ModelCosts

TABLES = ({1: 0.1, 9: 0.1}, {1: 1.0, 9: 1.0})
COSTS = ModelCosts(TABLES, (0.001, 0.01), 0.5, 0.3, 0.2)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "two-model-decoding" / "cost"


@pytest.fixture
def pair():
    large = tiny("llama", layers=2, seed=1)
    return nudged(large), large


def document(**changes):
    seconds = {"tables": [{"1": 1, "2": 1}, {"1": 1, "2": 1}], "cached": []}
    return {"of": {"format": cache.FORMAT}, "seconds": seconds | changes}


def test_what_is_stored_is_read_back_for_this_pair_only(pair, folder):
    assert cache.stored(pair) is None
    path = cache.store(pair, ModelCosts(TABLES))
    assert cache.stored(pair) == ModelCosts(TABLES)
    cache.store(pair, COSTS)
    assert cache.stored(pair) == COSTS
    assert [*folder.iterdir()] == [path]
    assert cache.stored(pair[::-1]) is None
    assert cache.stored([pair[0], LM(nudged(pair[1]).model.bfloat16())]) is None


@given(st.lists(st.dictionaries(st.integers(1, 999), st.floats(1e-9, 1e3), min_size=2), min_size=2, max_size=4))
def test_any_number_of_models_is_read_back(tmp_path_factory, tables):
    path = tmp_path_factory.mktemp("costs") / "cost.json"
    costs = ModelCosts(tuple(tables))
    cache.write(path, [], costs)
    assert cache.read(path) == costs


def test_other_threads_are_another_machine(pair):
    before = cache.cache_file(pair)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert cache.cache_file(pair) != before
    finally:
        torch.set_num_threads(threads)


SOUND = {"1": 1, "2": 1}
OLD = [[SOUND, SOUND], {"of": {"format": 2}, "seconds": {"forwards": [SOUND, SOUND], "cached": [0, 0]}}]
SHAPES = [None, [], {}, 1, "text", {"seconds": 1}, [document()], *OLD]
BAD_TABLES = [None, 3, [], SOUND, [SOUND], [SOUND, {}], [SOUND, {"1": 1}], [SOUND, [1, 1]]]
BAD_TABLES += [[SOUND, {"1": 1, key: 1}] for key in ("a", "0", "-1", "1.5", "1e3", "9" * 30)]
BAD_SECONDS = [0, -1, float("nan"), float("inf"), 10**300, 10**400, 1e300, "x", None, [1]]
WRONG = [*SHAPES, *(document(tables=tables) for tables in BAD_TABLES)]
WRONG += [document(tables=[SOUND, {"1": 1, "2": s}]) for s in BAD_SECONDS]
WRONG += [document(round_overhead=s) for s in BAD_SECONDS[1:]]
WRONG += [document(cached=cached) for cached in (None, 0, [0], [0, -1], [0, 0, 0], [0, float("nan")])]
WRONG += [document(other=1), document() | {"of": {}}, document() | {"of": None}]
CONTENTS = [b"", b"{", b"\xff\xfe", b"[" * 9999, b"[" * 10**5, *(json.dumps(value).encode() for value in WRONG)]


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
def test_any_other_file_is_one_sentence(content, tmp_path):
    path = tmp_path / "cost.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="does not hold costs in format") as caught:
        cache.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_sound_document_is_read(tmp_path):
    path = tmp_path / "cost.json"
    path.write_text(json.dumps(document()))
    assert cache.read(path) == ModelCosts(({1: 1.0, 2: 1.0}, {1: 1.0, 2: 1.0}))


def test_a_changed_second_is_noticed(pair):
    path = cache.store(pair, COSTS)
    before = path.read_text()
    path.write_text(before.replace("0.001", "0.002"))
    with pytest.raises(ValueError, match="as they were written; delete it"):
        cache.read(path)
    path.write_text(json.dumps({key: value for key, value in json.loads(before).items() if key != "checksum"}))
    assert cache.read(path) == COSTS  # of an earlier version


def test_a_pipe_and_a_huge_file_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", cache.LARGEST + 1)
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "huge"):
        with pytest.raises(ValueError, match="does not hold costs"):
            cache.read(path)


def test_a_broken_file_in_the_cache_is_ignored_with_one_line(pair, caplog):
    path = cache.store(pair, COSTS)
    path.write_bytes(b"{")
    assert cache.stored(pair) is None
    (record,) = caplog.records
    assert str(path) in record.getMessage() and "are unknown" in record.getMessage()


def test_a_kill_leaves_the_old_file(pair, folder, monkeypatch):
    cache.store(pair, COSTS)
    monkeypatch.setattr(cache.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cache.store(pair, ModelCosts(TABLES))
    assert cache.stored(pair) == COSTS
    assert len([*folder.iterdir()]) == 1
