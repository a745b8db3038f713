"""The main job, killed or stopped at 20 moments of all its phases: it ends as one that was left alone.

What cannot be equal is measured in seconds: the timing table and the live runs on the tuning prompts, of which those
of the run that was left alone are put in the place of its own, because later choices depend on them; the seconds of
the hold-out, and the numbers that come of them (speeds, their intervals, the comparison with chance, the verdict).
"""

import json
import shutil
import signal
from pathlib import Path

import pytest
from interrupted_jobs import (
    TRIALS,
    Job,
    Moment,
    certified_job,
    files,
    holds,
    is_free,
    rows,
    said,
    started,
    there,
    unfinished,
    without,
    write_cost,
)

from train.search.orphans import WORKER
from train.search.study import join_study

SECONDS = ("seconds", "tokens_per_second", "speedup", "speedup_interval", "total_time_ratio")
MEASURED = ("created", "checksum", "verdict", "comparison", "live_over_table")
"""of result.json and policy.json"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run that is left alone, after its models were timed."""
    job = certified_job(tmp_path_factory.mktemp("alone"))
    job.finish()
    return job


def put_cost(folder: Path) -> None:
    assert not (folder / "traces").exists()
    write_cost(folder)


def moments(alone: Path) -> list[Moment]:
    def put_seconds(folder: Path) -> None:
        assert not (folder / "candidates.json").exists()
        assert rows(folder / "tune.jsonl", "seconds") == rows(alone / "tune.jsonl", "seconds")
        shutil.copy(alone / "tune.jsonl", folder / "tune.jsonl")

    return [
        started(0.3, 1.5),
        started(1.5, 4.0),
        said("to certify a loss of", 0.0, 0.1),  # the models are loaded
        there("run.json"),
        said("loading the models", 0.3, 0.6, then=put_cost),  # they are timed
        there("traces/meta.json", 0.0, 0.5),
        there("traces/shard-00000.parquet", 0.0, 0.3),
        there("traces/shard-00002.parquet", 0.0, 3.0),
        there("traces/shard-00004.parquet", 0.0, 0.3),
        holds("study.journal", 60, 0.0, 0.02),
        holds("study.journal", 150, 0.0, 0.02),
        holds("study.journal", 220, 0.0, 0.02),
        holds("tune.jsonl", 1, 0.0, 0.2),
        holds("tune.jsonl", 6, then=put_seconds),
        holds("threshold.jsonl", 1, 0.0, 0.1),
        holds("certify.jsonl", 16, 0.0, 0.2),
        holds("certify.jsonl", 56, 0.0, 0.2),
        holds("holdout.jsonl", 1, 0.0, 0.3),
        holds("texts.jsonl", 24, 0.0, 0.1),
        there("result.json", 0.0, 0.3),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=lambda how: how.name)
def test_a_run_that_is_ended_at_twenty_moments_loses_nothing(alone, how, tmp_path):
    job = Job(alone.command, tmp_path / "runs" / "default", tmp_path)
    chosen = moments(alone.folder)
    assert len(chosen) == 20
    job.interrupt(chosen, [how], seed=int(how))
    job.finish()
    assert files(job.folder) == files(alone.folder) and not unfinished(job.folder) and is_free(job.folder / ".lock")
    the_same_traces(job.folder, alone.folder)
    the_same_trials(job.folder, alone.folder)
    the_same_measurements(job.folder, alone.folder)
    the_same_result(job.folder, alone.folder)


def the_same_traces(own: Path, other: Path) -> None:
    shards = sorted(path.name for path in (other / "traces").glob("*.parquet"))
    for name in ("meta.json", *shards):
        assert (own / "traces" / name).read_bytes() == (other / "traces" / name).read_bytes(), name
    listed, expected = (sorted((x / "traces" / "checksums.jsonl").read_text().splitlines()) for x in (own, other))
    assert sorted(set(listed)) == expected  # a shard is listed before it is there


def the_same_trials(own: Path, other: Path) -> None:
    def described(folder: Path) -> list:
        return [
            (t.number, t.state, t.params, t.value, t.constraints, without(t.user_attrs, WORKER))
            for t in join_study(folder / "study.journal").trials
        ]

    assert described(own) == described(other)
    ends = [row["trial_id"] for row in rows(own / "study.journal") if row["op_code"] == 6 and row["state"] == 1]
    assert sorted(ends) == list(range(TRIALS))  # each was finished once


def the_same_measurements(own: Path, other: Path) -> None:
    for name in (
        "run.json",
        "cost.json",
        "candidates.json",
        "threshold.jsonl",
        "tune.jsonl",
        "certify.jsonl",
        "texts.jsonl",
    ):
        assert (own / name).read_bytes() == (other / name).read_bytes(), name
    assert rows(own / "holdout.jsonl", "seconds") == rows(other / "holdout.jsonl", "seconds")


def the_same_result(own: Path, other: Path) -> None:
    for name in ("result.json", "policy.json"):
        found, expected = (
            without(json.loads((folder / name).read_text()), *MEASURED, *SECONDS) for folder in (own, other)
        )
        assert found == expected, name
