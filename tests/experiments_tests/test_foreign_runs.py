"""A run's folder may come from elsewhere: no command runs the code that it names without the user's word."""

import shutil
import sys
from importlib import import_module

import pytest

from train.common import run_folder
from train.common.load_run import load_run

COMMANDS = {
    "train.reinforce": (),
    "train.monitor": ("--prompts", "unread.jsonl"),
    "experiments.own_path": (),
    "experiments.targets": (),
    "experiments.handoff": (),
    "experiments.kept": (),
    "experiments.backoff": (),
}


@pytest.fixture
def foreign(tuned_run, tmp_path, monkeypatch):
    """A finished run that names a grader; importing it leaves a file."""
    folder = shutil.copytree(tuned_run, tmp_path / "run")
    found = run_folder.read(folder / "run.json")
    found["settings"]["grader"] = "planted:grade"
    run_folder.write(folder / "run.json", found)
    (tmp_path / "planted.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\ndef grade(prompt, reference, text): return 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    sys.modules.pop("planted", None)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_grader_that_a_folder_names_is_not_run(name, foreign, capfd):
    for other in ((), ("--grader", "os:getcwd")):
        assert import_module(name).main([str(foreign), *COMMANDS[name], *other]) == 2
        said = capfd.readouterr().err
        assert f"{foreign} was tuned with a grader, which is code" in said and "--grader planted:grade" in said
    assert not (foreign.parent / "ran").exists()


def test_it_is_run_at_the_user_s_word(foreign, monkeypatch):
    monkeypatch.setattr("train.common.load_run._check_one_run", lambda *_: None)  # the fixture changed run.json
    run = load_run(foreign, "planted:grade")
    assert run.metric.grade(run.splits["fit"][0], "text") == 1.0
    assert (foreign.parent / "ran").exists()


def test_a_grader_that_the_run_lacks_is_refused(tuned_run):
    with pytest.raises(ValueError, match="was tuned without a grader; leave out --grader a:b"):
        load_run(tuned_run, "a:b")
