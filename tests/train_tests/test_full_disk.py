"""A disk that is full at any step of the main job: one sentence, exit code 2, and with more room the job goes on."""

import json
import resource
import subprocess

import pytest
from tiny_runs import ENV, FAST, command, save_toys, typed


def start(arguments, cwd, most):
    """The job, in which no file may grow beyond ``most`` bytes: a write ends in the middle, as on a full disk."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_goes_on_as_the_disk_is_given_more_room(tmp_path):
    options = save_toys(tmp_path, 40) | FAST | {"output": tmp_path / "runs", "quality_budget": 0.95, "trials": 4}
    folder, reached = tmp_path / "runs" / "default", []
    for most in (1000 * 4**i for i in range(8)):
        process = start(typed(options), tmp_path, most)
        if process.returncode == 0:
            break
        said = process.stderr
        assert process.returncode == 2 and said.count("\n") == 1 and "File too large" in said, (most, said)
        assert str(folder) in said
        there = {path.name for path in folder.glob("*")}
        reached += [there] if there not in reached else []
    assert process.returncode == 0, process.stderr
    assert len(reached) >= 3 and any("holdout.jsonl" in there for there in reached), reached
    assert json.loads((folder / "result.json").read_text())["verdict"] in " ".join(process.stdout.split())
