"""The bandit: it finds the best arm, explores each for itself, and its replay is that of the traces."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_specimens import COST, made_up

from decoding.cost import cache
from policies.storage.shards import write_shard
from train.bandit import UCB, Bandit, arm_seconds, compare, main
from train.common.run_folder import FORMAT
from train.replay.backoff import speculative
from train.traces.handoff_traces import SCHEMA


def pulled(bandit, means, rounds, seed=0):
    draw = np.random.default_rng(seed)
    for _ in range(rounds):
        arm = bandit.select()
        bandit.update(arm, float(draw.random() < means[arm]))
    return bandit.pulls


def test_every_arm_is_pulled_once_then_the_best_most():
    bandit = UCB(3)
    assert pulled(bandit, (0.2, 0.5, 0.8), 3).tolist() == [1, 1, 1]
    counts = pulled(bandit, (0.2, 0.5, 0.8), 3000)
    assert counts.argmax() == 2 and counts[2] > 2000 and (counts > 5).all()


def test_an_arm_that_was_unlucky_once_is_tried_again():
    bandit = UCB(2)
    bandit.update(0, 0.0)
    for _ in range(60):
        arm = bandit.select()
        bandit.update(arm, (1.0, 0.6)[arm])
    assert bandit.pulls[0] > bandit.pulls[1]
    greedy = UCB(2, width=0.0)
    greedy.update(0, 0.0)
    for _ in range(60):
        arm = greedy.select()
        greedy.update(arm, (1.0, 0.6)[arm])
    assert greedy.pulls[0] == 1


@given(st.lists(st.floats(0.1, 5), min_size=2, max_size=5))
def test_the_bonus_is_of_each_arm(sums):
    bandit = UCB(len(sums))
    for arm, reward in enumerate(sums):
        bandit.update(arm, reward)
    bonus = np.sqrt(2 * np.log(len(sums)))
    assert bandit.select() == int(np.argmax(np.array(sums) + bonus))


def test_one_best_arm_is_nearly_reached_and_not_passed():
    draw = np.random.default_rng(0)
    alone = draw.uniform(5, 10, 30)
    seconds = np.stack([alone, alone / 1.1, alone / 2.0], 1)
    found = compare(seconds, alone, Bandit(run=None, passes=10, orders=20))
    assert found["fixed"] == pytest.approx([1.0, 1.1, 2.0])
    assert found["random_arm"] < found["ucb"] <= found["best_fixed"] == pytest.approx(found["best_of_each_prompt"])
    assert found["ucb"] > 1.9
    assert np.argmax(found["pulls"]) == 2 and sum(found["pulls"]) == pytest.approx(1)


@pytest.fixture
def folder(tmp_path):
    traces = made_up()
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "meta.json").write_text(json.dumps({"schema": SCHEMA}))
    names = np.where(np.isin(traces["prompt"], ["p0", "p1"]), "mixed", "large")
    write_shard(tmp_path / "traces", 0, traces.columns | {"trajectory": names})
    (tmp_path / "run.json").write_text(json.dumps({"format": FORMAT, "settings": {"max_new_tokens": 20}}))
    cache.write(tmp_path / "cost.json", [], COST)
    return tmp_path


def test_the_command_replays_the_run(folder, capsys):
    seconds, alone = arm_seconds(Bandit(run=folder))
    texts = made_up()
    texts = texts.where(~np.isin(texts["prompt"], ["p0", "p1"]))
    assert seconds.shape == (10, 7)
    for k in range(1, 7):
        assert alone.sum() / seconds[:, k].sum() == pytest.approx(speculative(texts, k, COST, 20))
    assert main([str(folder), "--orders", "5", "--passes", "2"]) == 0
    found = json.loads((folder / "bandit.json").read_text())
    assert found["prompts"] == 20 and len(found["fixed"]) == 7
    assert min(found["fixed"]) <= found["ucb"] <= found["best_of_each_prompt"]


def test_bad_input_is_one_sentence(folder, tmp_path, capsys):
    for options, message in (
        ([str(tmp_path / "nowhere")], "has no run.json; give the folder"),
        ([str(folder), "--orders", "0"], "--orders must be at least 1"),
        ([str(folder), "--width", "-1"], "--width must be at least 0"),
    ):
        assert main(options) == 2
        err = capsys.readouterr().err
        assert err.startswith("bandit: ") and message in err and err.count("\n") == 1
    assert not (folder / "bandit.json").exists()
