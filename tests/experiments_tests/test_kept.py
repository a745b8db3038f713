"""Promised and kept, as the command measures it on a toy run."""

import json

import numpy as np
import pytest

from experiments import kept


def test_the_table_is_written_once_and_both_choices_are_held_against_it(tuned_run, tmp_path, capfd):
    options = [str(tuned_run), "--limit", "12", "--thresholds", "3", "--runs", "40", "--budget", "0.3"]
    options += ["--loss-cap", "0.9", "--output", str(tmp_path)]
    assert kept.main(options) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["candidates"]) == 3 and set(result["once"]) == set(result["of_many"]) == {"best", "certificate"}
    texts = {path: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    assert len(texts) == 4
    assert kept.main(options) == 0
    assert texts == {path: path.read_bytes() for path in texts}
    assert json.loads((tmp_path / "result.json").read_text()) == result


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_write_the_texts_that_one_process_writes(tuned_run, tmp_path):
    left = []
    for option in ([], ["--workers", "processes:2"]):
        folder = tmp_path / f"{len(left)}"
        options = ["--limit", "12", "--thresholds", "2", "--runs", "10", "--budget", "0.3", "--batch", "4"]
        assert kept.main([str(tuned_run), *options, "--output", str(folder), *option]) == 0
        assert not (folder / "queue").exists() and (folder / "workers").exists() == bool(option)
        left.append({path.name: path.read_bytes() for path in folder.glob("*.json*")})
    assert left[0] == left[1] and len(left[0]) == 4


def test_a_certificate_keeps_its_promise_where_the_best_threshold_does_not():
    """At the boundary: one candidate is just within the budget, and the next one just beyond."""
    rng = np.random.default_rng(0)
    losses = np.minimum(0.4, rng.exponential([0.05, 0.098, 0.105], (400, 3)))
    losses *= np.array([0.05, 0.098, 0.105]) / losses.mean(0)
    config = kept.Kept("unused", budget=0.1, loss_cap=0.5, runs=300)
    said = kept.repeat_choices(config, losses, 60, 150)
    assert said["best"]["broke"] > 0.3 > 0.1 >= said["certificate"]["broke"]
    assert said["certificate"]["chose"] > 0.9


def test_nothing_within_the_budget_is_no_choice():
    assert kept.fastest_within(np.array([[0.2, 0.3], [0.2, 0.1]]), 0.1) is None
    assert kept.fastest_within(np.array([[0.0, 0.1], [0.1, 0.1]]), 0.1) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "0.6"), "the budget is 0.6; it must be above 0 and below the loss cap of 0.5"),
        (("--longest", "1"), "only 0 prompts are left"),
        (("--thresholds", "0"), "--thresholds must be at least 1"),
    ],
)
def test_bad_input_is_one_sentence(tuned_run, options, message, capfd):
    assert kept.main([str(tuned_run), *options]) == 2
    assert message in capfd.readouterr().err
