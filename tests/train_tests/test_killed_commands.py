"""The other commands, ended at five moments by SIGKILL and SIGINT in turn: each ends as one that was left alone.

A drafter cannot be the same: its learning rate follows the clock. All before its training is, and training that was
saved is not repeated.
"""

import json
import shutil
import signal
import sys

import pytest
from interrupted_jobs import Job, certified_job, files, holds, is_free, rows, said, started, there, unfinished, without
from tiny_distillation import command as distill
from tiny_distillation import make_prompts, make_target
from tiny_runs import ROOT, typed

from policies.storage import tensors

IN_TURN = [signal.SIGKILL, signal.SIGINT]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def script(name: str, *arguments) -> list[str]:
    return [sys.executable, str(ROOT / "train" / f"{name}.py"), *map(str, arguments)]


def both(tuned_run, tmp_path):
    """Two copies of a tuned run, in each of which a job can work."""
    for name in ("alone", "ended"):
        shutil.copytree(tuned_run, tmp_path / name / "run", ignore=shutil.ignore_patterns("wandb"))
    return tmp_path / "alone", tmp_path / "ended"


def check_left_over(own, other):
    assert files(own) == files(other) and not unfinished(own) and is_free(own / ".lock")


def test_reinforce(tuned_run, tmp_path):
    options = {"episodes": 96, "prompts": 2, "group": 4, "max_new_tokens": 6, "threads": 1}
    command = script("reinforce", "run", *typed(options))
    alone, ended = (Job(command, where / "run" / "reinforce", where) for where in both(tuned_run, tmp_path))
    alone.finish()
    moments = [
        started(0.3, 4.0),
        there("settings.json"),
        holds("steps.jsonl", 2, 0.0, 0.1),
        holds("steps.jsonl", 5, 0.0, 0.1),
        holds("steps.jsonl", 9, 0.0, 0.1),
    ]
    ended.interrupt(moments, IN_TURN, seed=1)
    ended.finish()
    check_left_over(ended.cwd / "run", alone.cwd / "run")
    for name in ("reinforced.json", "reinforce/steps.jsonl", "reinforce/settings.json"):
        assert (ended.cwd / "run" / name).read_bytes() == (alone.cwd / "run" / name).read_bytes(), name
    assert len(rows(ended.folder / "steps.jsonl")) == 12


def test_distill(tmp_path):
    make_target(tmp_path)
    make_prompts(tmp_path)
    options = {"on_policy_rounds": 1, "on_policy_tokens": 5, "answer_batch": 8, "date": "2026-01-31"}
    jobs = [
        Job(script("distill", *distill(tmp_path, name, 0.05, *typed(options))), tmp_path / name, tmp_path)
        for name in "ab"
    ]
    alone, ended = jobs
    alone.finish()
    moments = [
        started(0.3, 3.0),
        there("settings.json", 0.0, 0.1),
        holds("generations.jsonl", 72, 0.0, 0.1),
        said("target's top-k", 0.2, 0.5),  # in the training
        there("on_policy-1.jsonl", 0.0, 0.1),
    ]
    ended.interrupt(moments, IN_TURN, seed=2)
    ended.finish()
    assert not unfinished(ended.folder) and is_free(ended.folder / ".lock")
    drafted = {name for job in jobs for name in files(job.folder) if name.startswith("store/")}
    shared = files(ended.folder) & files(alone.folder)
    assert files(ended.folder) ^ files(alone.folder) == drafted - shared  # what each drafter wrote is its own
    assert len(drafted) == 9 and len(drafted & shared) == 3
    for name in ("settings.json", "generations.jsonl", *(drafted & shared)):
        assert (ended.folder / name).read_bytes() == (alone.folder / name).read_bytes(), name
    trained = [json.loads(tensors.read(job.folder / "checkpoint.safetensors", "")[1]["progress"]) for job in jobs]
    assert [progress["rounds"] for progress in trained] == [1, 1]
    assert trained[1]["elapsed"] == pytest.approx(trained[0]["elapsed"], abs=1)  # what was saved was not repeated
    elapsed = [row["minutes"] for row in rows(ended.folder / "progress.jsonl")]
    assert elapsed == sorted(elapsed)


def test_certification(tmp_path):
    """Of a run that has been tuned: the tests of its thresholds on prompts of their own."""
    alone = certified_job(tmp_path / "alone")
    alone.finish()
    ended = Job(alone.command, tmp_path / "runs" / "default", tmp_path)
    shutil.copytree(alone.folder, ended.folder)
    for name in ("candidates.json", "certify.jsonl", "result.json", "policy.json"):
        (ended.folder / name).unlink()
    moments = [
        said("replay"),
        there("candidates.json"),
        holds("certify.jsonl", 16, 0.0, 0.1),
        holds("certify.jsonl", 40, 0.0, 0.1),
        holds("certify.jsonl", 72, 0.0, 0.1),
    ]
    ended.interrupt(moments, IN_TURN, seed=3)
    ended.finish()
    check_left_over(ended.folder, alone.folder)
    for name in ("candidates.json", "certify.jsonl", "threshold.jsonl", "tune.jsonl", "holdout.jsonl", "texts.jsonl"):
        assert (ended.folder / name).read_bytes() == (alone.folder / name).read_bytes(), name
    for name in ("result.json", "policy.json"):  # nothing is measured again, so all is the same
        own, other = (without(json.loads((job.folder / name).read_text()), "created") for job in (ended, alone))
        assert without(own, "checksum") == without(other, "checksum")
