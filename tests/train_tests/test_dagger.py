"""DAgger's rounds: each is of a policy fitted on all traces before it, and a killed one goes on as it was."""

from pathlib import Path

import numpy as np
import pytest
from tiny_runs import FAST, save_model, write_prompts

from train.common.cli import InputError
from train.common.preparation import prepare
from train.fit_policy import FitPolicy
from train.methods import backoff
from train.methods.backoff import trace
from train.pipeline import run
from train.traces.handoff_traces import read_traces


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    small, large = (save_model(folder / name, seed, layers) for name, seed, layers in (("s", 1, 1), ("l", 2, 2)))
    return {"small": small, "large": large, "prompts": write_prompts(folder / "prompts.jsonl")}


def config(toys, output: Path, **changes) -> FitPolicy:
    return FitPolicy(**toys | FAST | {"output": output} | changes)


@pytest.fixture(scope="module")
def two(toys, tmp_path_factory):
    """A job with two rounds, its traces, and the rows that each round's policy was fitted on."""
    job = prepare(config(toys, tmp_path_factory.mktemp("two"), rounds=2))
    return job, trace(job).texts


def kinds(traces) -> list[str]:
    """The trajectory of each text, prompts together, in the order they were traced."""
    first = traces.starts[:-1]
    order = np.argsort(traces["prompt"][first], kind="stable")
    return traces["trajectory"][first][order].tolist()


def test_each_round_adds_a_text_of_every_prompt(two):
    _, traces = two
    assert kinds(traces) == ["large", "mixed", "policy", "policy"] * 24


def test_a_round_is_of_a_policy_fitted_on_all_before(two, monkeypatch):
    job, traces = two
    seen = []
    make = backoff.Search.of
    monkeypatch.setattr(backoff.Search, "of", lambda job, texts, rows: seen.append(texts) or make(job, texts, rows))
    assert len(trace(job).texts) == len(traces)
    assert [kinds(part) for part in seen] == [["large", "mixed"] * 24, ["large", "mixed", "policy"] * 24]


@pytest.mark.slow
def test_a_round_that_was_killed_goes_on_with_the_same_policy(two):
    job, traces = two
    shards = sorted((job.folder / "traces").glob("*.parquet"))
    assert len(shards) == 3 * 3
    for kept in (8, 5, 4):
        for path in shards[kept:]:
            path.unlink()
        again = trace(job).texts
        for name, column in traces.columns.items():
            np.testing.assert_array_equal(again[name], column)


def test_no_round_is_as_if_nothing_had_been_traced(toys, tmp_path, two):
    traces = trace(prepare(config(toys, tmp_path, rounds=0))).texts
    assert kinds(traces) == ["large", "mixed"] * 24
    first = read_traces(two[0].folder / "traces", shards=3)
    np.testing.assert_array_equal(traces["small_token"], first["small_token"])


def test_fewer_than_no_rounds_are_refused(toys, tmp_path):
    with pytest.raises(InputError, match="--rounds must be at least 0, not -1"):
        run(config(toys, tmp_path / "runs", rounds=-1))
    assert not list(tmp_path.iterdir())
