"""A run and its dtypes: what auto meant is recorded and loaded again; another dtype is another run."""

import json

import pytest
from tiny_runs import save_toys
from tyro import cli

from decoding.cli.dtypes import DtypeOptions
from decoding.cost.costs import ModelCosts
from train.common import alone, preparation
from train.common.run_folder import read_settings
from train.common.settings import FitPolicy
from train.traces.given import about


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """``prepare`` of the main job with dtype options, on a pair in float32."""
    monkeypatch.setattr(preparation, "timing_table", lambda folder, models, batch: ModelCosts(({1: 1.0, 2: 1.0},) * 2))
    toys = save_toys(tmp_path / "toys", 30)
    rest = [x for name in ("small", "large", "prompts") for x in (f"--{name}", str(toys[name]))]

    def prepare(*options):
        settings = cli(FitPolicy, args=[*rest, "--output", str(tmp_path / "runs"), *options])
        try:
            return preparation.prepare(settings)
        finally:
            alone.release()

    return prepare


def test_what_auto_meant_is_recorded(prepared, tmp_path):
    job = prepared("--small-dtype", "bfloat16")
    assert job.settings.dtypes == DtypeOptions("auto", "bfloat16", "float32")
    assert read_settings(job.folder).dtypes == job.settings.dtypes
    run = json.loads((job.folder / "run.json").read_text())
    assert [model["dtype"] for model in run["models"]] == ["bfloat16", "float32"]
    again = prepared()  # auto is what it was
    assert [lm.dtype for lm in again.models] == ["bfloat16", "float32"]
    assert prepared("--small-dtype", "bfloat16", "--large-dtype", "float32").settings.dtypes == job.settings.dtypes


def test_another_dtype_is_another_run(prepared):
    folder = prepared().folder
    with pytest.raises(ValueError, match=f"^{folder} holds a run with another --large-dtype, models; use another --na"):
        prepared("--large-dtype", "bfloat16")


def test_traces_are_of_a_dtype(prepared):
    exact = prepared()
    rounded = prepared("--small-dtype", "bfloat16", "--name", "rounded")
    prompts = exact.splits["fit"]
    before, now = (about(job.small, job.large, prompts, 8) for job in (exact, rounded))
    assert {key for key in before if before[key] != now[key]} == {"models"}
