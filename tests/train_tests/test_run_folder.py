"""A folder knows whose run it holds; what differs is named as it is typed."""

import platform
from types import SimpleNamespace

import pytest

from train.common import run_folder

RUN = {"settings": {"lr": 0.1, "top_k": 8, "small": None}, "models": ["a", "b"]}
config = SimpleNamespace(lr=0.1, top_k=8, small=None)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "runs" / "run.json"
    run_folder.remember(path, RUN)
    return path


def check(path, **changes):
    settings = {name: changes.pop(name, value) for name, value in RUN["settings"].items()}
    run_folder.check(path, RUN | {"settings": settings} | changes, config, "take another")


def test_a_run_of_the_same_settings_goes_on(path):
    check(path)
    check(path.with_name("nothing.json"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 0.2}, "--lr"),
        ({"small": "x", "top_k": 4}, "--top-k, --small"),
        ({"models": ["a"]}, "models"),
        ({"models": ["a"], "lr": 1}, "--lr, models"),
    ],
    ids=str,
)
def test_what_differs_is_named(path, changes, named):
    with pytest.raises(ValueError, match=f"^{path.parent} holds a run with another {named}; take another$"):
        check(path, **changes)


def test_settings_may_be_all_there_is(tmp_path):
    run_folder.remember(tmp_path / "s.json", RUN["settings"])
    run_folder.check(tmp_path / "s.json", RUN["settings"], config, "take another")
    with pytest.raises(ValueError, match="another --lr; take"):
        run_folder.check(tmp_path / "s.json", RUN["settings"] | {"lr": 2}, config, "take another")


NO_SETTINGS = f'{{"format": {run_folder.FORMAT}, "settings": 3}}'


DEEP = "[" * 10**5


@pytest.mark.parametrize("content", ["", "{", "[]", "3", NO_SETTINGS, '"\\ud800', DEEP, '{"format": 2, "format": 2}'])
def test_a_damaged_file_is_said_to_be_one(path, content):
    path.write_text(content)
    with pytest.raises(ValueError, match=f"^{path}: it.*; take another$"):
        check(path)


@pytest.mark.parametrize("content", ["{}", '{"settings": {"lr": "0.1"}}', '{"format": 1}', '{"format": "2"}'])
def test_a_file_of_another_version_is_refused(path, content):
    path.write_text(content)
    with pytest.raises(ValueError, match=f"^{path}: it was written by another version of this program; take another$"):
        check(path)


def test_a_changed_setting_is_noticed(path):
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(ValueError, match=f"^{path}: it was changed after it was written .*; take another$"):
        check(path, lr=0.2)


def test_a_folder_in_its_place_is_refused(path):
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match=f"^{path}: it is not a regular file; take another$"):
        check(path)


def test_paths_are_text(path):
    run_folder.write(path, {"settings": {"output": path.parent}})
    run_folder.check(path, {"settings": {"output": path.parent}}, config, "take another")
    assert run_folder.read(path) == {"settings": {"output": str(path.parent)}}


def test_what_is_remembered_stays_and_leftovers_go(path):
    (path.parent / f"run.json.{platform.node()}.{10**30}.tmp").touch()
    before = path.read_bytes()
    run_folder.remember(path, {"settings": {}})
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == [path.parent / ".lock", path]
