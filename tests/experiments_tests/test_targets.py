"""Targets against what unseen prompts say, as the command measures them on toy runs."""

import json
import shutil

import numpy as np
import pytest

from experiments import targets
from policies import load
from train.common import run_folder


def rewrite(path, changes):
    run_folder.write(path, run_folder.read(path) | changes)


@pytest.fixture(scope="module")
def runs(tuned_run, tmp_path_factory):
    """Copies of one run that were asked for 1.2x and 1.5x; the second escalates everything."""
    folder = tmp_path_factory.mktemp("targets")
    made = []
    for target in (1.2, 1.5):
        run = shutil.copytree(tuned_run, folder / str(target))
        rewrite(run / "result.json", {"goal": {"target_speedup": target}})
        made.append(run)
    policy = load(made[1] / "policy.json")
    policy.with_threshold(0.0).save(made[1] / "policy.json", policy.models, policy.provenance)
    return made


def test_every_target_has_its_policy_measured_once(runs, tmp_path, capfd):
    options = [*map(str, runs), "--limit", "4", "--output", str(tmp_path)]
    assert targets.main(options) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert [one["target"] for one in result["targets"]] == [1.2, 1.5] and result["prompts"] == 4
    assert result["targets"][1]["large_share"] == 1 and result["targets"][1]["loss"] == 0
    assert result["targets"][0]["large_share"] < 1
    timed = (tmp_path / "prompts.jsonl").read_bytes()
    assert targets.main(options) == 0
    assert (tmp_path / "prompts.jsonl").read_bytes() == timed
    assert json.loads((tmp_path / "result.json").read_text()) == result


def test_a_speedup_is_a_ratio_of_sums_and_a_median_of_prompts():
    measured = {
        "large": {"seconds": np.array([2.0, 3.0, 6.0]), "tokens": np.array([1.0, 1.0, 2.0])},
        "1.5": {"seconds": np.array([1.0, 3.0, 2.0]), "tokens": np.array([1.0, 2.0, 1.0])},
    }
    measured["1.5"] |= {"loss": np.zeros(3), "large_share": np.array([1.0, 0.5, 0.0])}
    one = targets.summarize(measured, "1.5", 1.5)
    assert one["speedup"] == pytest.approx((11 / 4) / (6 / 4)) and one["off"] == pytest.approx(one["speedup"] / 1.5 - 1)
    assert one["median"] == 2.0 and one["large_share"] == pytest.approx(0.5)


def test_bad_input_is_one_sentence(runs, tuned_run, tmp_path, capfd):
    other = shutil.copytree(runs[0], tmp_path / "other")
    settings = run_folder.read(other / "run.json")["settings"]
    rewrite(other / "run.json", {"settings": settings | {"max_new_tokens": 99}})
    rewrite(other / "result.json", {"goal": {"target_speedup": 3.0}, "run": None})
    for options, message in [
        ([str(tuned_run)], "has no target speedup"),
        ([str(runs[0]), str(runs[0])], "has the same target as another run, 1.2"),
        ([str(runs[0]), str(other)], "has another max_new_tokens than"),
        ([str(runs[0]), "--longest", "1"], "no prompts are left"),
        ([str(tmp_path / "none")], "has no run.json"),
    ]:
        assert targets.main([*options, "--output", str(tmp_path / "out")]) == 2
        assert message in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
