"""What a policy's own path adds, as the command measures it on a toy run."""

import json
import shutil

import pytest

from experiments.own_path import compare, main
from policies import load
from train.search.backoff import FEATURE_SETS


@pytest.fixture(scope="module")
def tuned(tuned_run, tmp_path_factory):
    """A finished run, and a policy that stands for a reinforced one."""
    folder = shutil.copytree(tuned_run, tmp_path_factory.mktemp("own") / "run")
    policy = load(folder / "policy.json")
    policy.save(folder / "reinforced.json")
    return folder


@pytest.mark.slow
def test_all_are_held_against_one_round_and_nothing_is_measured_twice(tuned, tmp_path, capfd):
    options = [str(tuned), "--limit", "12", "--batch", "5", "--output", str(tmp_path / "out")]
    shards = sorted((tuned / "traces").iterdir())
    assert main(options) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    others = {name.removeprefix("features ") for name in result["policies"] if name.startswith("features ")}
    assert len(others) == len(FEATURE_SETS) - 1 and others < set(FEATURE_SETS)
    rivals = {"0 rounds", "2 rounds", "reinforced", "momentum", "entropy", "top1", *(f"features {o}" for o in others)}
    assert set(result["policies"]) == {"1 round"} | rivals
    assert result["prompts"] == 12
    for name in rivals:
        one = result["policies"][name]
        low, high = one["interval"]
        assert low <= high and 0 <= one["slow"]["loss"] <= 1 and one["fast"]["priced_speedup"] > 0
        own = sum(result["policies"]["1 round"][place]["loss"] for place in ("slow", "fast")) / 2
        assert one["difference"] == pytest.approx(one["loss_at_the_speed_of_one_round"] - own)
    assert sorted((tuned / "traces").iterdir()) == shards  # the run itself is only read
    texts = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.suffix in (".jsonl", ".parquet")}
    assert len(texts) == 1 + 2 * (1 + len(rivals)) + 3 * 2 + 1
    assert main(options) == 0
    assert texts == {path: path.read_bytes() for path in texts}
    assert main([*options[:2], "14", *options[3:]]) == 0
    for path, before in texts.items():
        assert path.read_bytes().startswith(before)


def test_a_policy_that_loses_less_at_the_same_speed_has_a_negative_difference():
    import numpy as np

    def made(seconds, loss, n=40):
        draw = np.random.default_rng(0)
        return {"seconds": np.full(n, seconds), "tokens": np.full(n, 10.0), "loss": loss + 0.01 * draw.random(n)}

    measured = {"large": made(10.0, 0.0), "1 round slow": made(8.5, 0.25), "1 round fast": made(7.5, 0.35)}
    measured |= {"better slow": made(9.0, 0.1), "better fast": made(7.0, 0.2)}
    found = compare(measured, "better")
    assert found["difference"] == pytest.approx(-0.15, abs=1e-6)
    assert found["interval"][1] < 0 and found["bracketed"]


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--longest", "1"), "no prompt of up to 1 tokens is left"), (("--rounds", "0"), "--rounds must be at least 1")],
)
def test_bad_input_is_one_sentence(tuned, tmp_path, capfd, options, message):
    capfd.readouterr()
    assert main([str(tuned), "--output", str(tmp_path / "out"), *options]) == 2
    err = capfd.readouterr().err
    assert err.startswith("own_path: ") and message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
