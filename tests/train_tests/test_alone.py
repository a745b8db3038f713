"""A folder has one job: the second is told, a dead process holds nothing, and those that join are let in."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from tiny_runs import ENV, FAST, ROOT, save_toys, typed

from train.common import alone, run_folder
from train.fit_policy import main

HOLDS = """
import sys, time
from pathlib import Path
from train.common import alone
alone.hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds ``tmp_path / "job"``."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "job")]
    process = subprocess.Popen(command, env=ENV | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()
    alone.release()


def test_the_second_is_told_until_the_first_is_killed(holder, tmp_path):
    folder, config = tmp_path / "job", SimpleNamespace()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"another job works in .*job; wait for its end"):
            run_folder.ensure_same_run(folder / "run.json", {"a": 1}, config, "no")
        assert not (folder / "run.json").exists()
    run_folder.ensure_same_run(folder / "run.json", {"a": 1}, SimpleNamespace(join=True), "no")
    holder.kill()
    holder.wait()
    run_folder.ensure_same_run(folder / "run.json", {"a": 1}, config, "no")
    run_folder.ensure_same_run(folder / "run.json", {"a": 1}, config, "no")  # a process may hold its own again


def test_the_command_says_it_and_leaves_no_lock(holder, tmp_path, capfd):
    toys = save_toys(tmp_path, 30) | FAST | {"output": tmp_path, "name": "job"}
    assert main(typed(toys)) == 2
    assert "another job works in" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "job").iterdir()] == [".lock"]
    assert not alone._held
