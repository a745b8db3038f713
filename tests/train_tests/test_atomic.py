"""What a killed writer leaves is cleared away, and nothing else is."""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from train.common import atomic

KILLED = """
import os, signal, sys
from train.common import atomic
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
atomic.write(sys.argv[1], b"new")
"""


@pytest.fixture
def dead():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_what_a_killed_writer_left_goes_at_the_next_start(tmp_path):
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "result.json"
    path.write_bytes(b"old")
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED, path], env=os.environ | {"PYTHONPATH": str(root)})
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(names(tmp_path)) == 2
    atomic.sweep(tmp_path)
    assert names(tmp_path) == {"result.json"}


def test_only_files_of_dead_processes_of_this_machine_go(tmp_path, dead):
    here = platform.node()
    kept = {
        f"a.json.{here}.{os.getppid()}.tmp",  # lives
        f"a.json.{here}.1.tmp",  # lives, and may not be asked
        f"a.json.not-{here}.{dead}.tmp",  # elsewhere
        f"a.json.{dead}.tmp",  # who knows where
        f"{here}.{dead}.tmp.json",
        "mine.tmp",
    }
    for name in {*kept, f"a.json.{here}.{dead}.tmp", f"b.{here}.{10**30}.tmp"}:
        (tmp_path / name).write_bytes(b"x")
    atomic.sweep(tmp_path)
    assert names(tmp_path) == kept


def test_a_folder_that_is_not_there_has_nothing_to_clear(tmp_path):
    atomic.sweep(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_a_write_leaves_only_the_file(tmp_path, monkeypatch):
    atomic.write(tmp_path / "made" / "x", b"1")
    assert names(tmp_path) == {"x"}
    monkeypatch.setattr("os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        atomic.write(tmp_path / "made" / "x", b"2")
    assert names(tmp_path) == {"x"}
    assert (tmp_path / "made" / "x").read_bytes() == b"1"
