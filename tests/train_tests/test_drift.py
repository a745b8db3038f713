"""Has traffic moved: false alarms at their level, alarms when it has, and the steps that both are made of."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from drift_specimens import columns, steps
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny_runs import toy_pair, toy_prompts

from decoding import LM, Backoff
from policies import Rule, load
from policies.features.step_recorder import StepRecorder
from train.common.generations import write
from train.monitor import main
from train.monitoring import drift
from train.monitoring.drift import Monitor, traffic
from train.monitoring.reference import traffic_of_texts


def reference(seed, **options):
    *seen, texts = steps(seed, **options)
    return traffic(columns(*seen), texts)


def judged(monitor, seed, **options):
    return monitor.update(columns(*steps(seed, **options)[:3]))


@pytest.mark.parametrize("alike", [0.0, 1.0])
def test_false_alarms_are_no_more_than_said(alike, monkeypatch):
    monkeypatch.setattr(drift, "MODERATE", -1.0)  # any difference beyond chance is worth a word, however small
    runs = 300
    alarms = [judged(Monitor(reference(2 * i, alike=alike), 0.2), 2 * i + 1, alike=alike).moved for i in range(runs)]
    assert np.mean(alarms) <= 0.2 * 6 / np.pi**2 + 3 * np.sqrt(0.12 * 0.88 / runs)


def test_steps_that_are_alike_are_not_independent(monkeypatch):
    """The mistake that makes monitors cry wolf: counting every token of a text as a witness of its own."""
    monkeypatch.setattr(drift, "MODERATE", -1.0)
    alarms = []
    for i in range(60):
        found = reference(2 * i)
        assert found["columns"]["entropy"]["design_effect"] > 5
        for column in found["columns"].values():
            column["design_effect"] = 1.0
        alarms.append(judged(Monitor(found, 0.05), 2 * i + 1).moved)
    assert np.mean(alarms) > 0.3


def test_a_monitor_s_whole_life_has_its_level(monkeypatch):
    monkeypatch.setattr(drift, "MODERATE", -1.0)
    alarmed = 0
    for i in range(40):
        monitor = Monitor(reference(100 * i, texts=60), 0.1)
        alarmed += any(judged(monitor, 100 * i + 1 + j).moved for j in range(20))
    assert alarmed / 40 <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 40)


@pytest.mark.parametrize(
    ("change", "column"), [({"shift": 2.0}, "entropy"), ({"rate": 0.9}, "escalated")], ids=["entropy", "escalated"]
)
def test_what_has_moved_is_named(change, column):
    for i in range(20):
        found = judged(Monitor(reference(2 * i, alike=0.5)), 2 * i + 1, alike=0.5, **change)
        assert found.moved
        assert f"Traffic has moved, as 1200 steps show: {column} (PSI" in found.sentence
        assert found.sentence.count("\n") == 0
        assert found.columns["agreed"]["ks"] <= found.columns["agreed"]["limit"]


def test_the_mean_tells_where_steps_of_a_text_are_so_alike_that_their_distribution_cannot():
    caught = []
    for i in range(20):
        found = judged(Monitor(reference(2 * i, texts=48, alike=2.0)), 2 * i + 1, texts=48, alike=2.0, shift=1.6)
        one = found.columns["entropy"]
        caught.append(found.moved and one["t"] > one["t_limit"] and one["ks"] <= one["limit"])
    assert sum(caught) >= 3


def test_a_reference_of_an_earlier_version_is_compared_without_the_mean():
    old = reference(0)
    for one in old["columns"].values():
        del one["error"], one["texts"]
    found = judged(Monitor(old), 1)
    assert not found.moved and {one["t"] for one in found.columns.values()} == {0.0}


def test_a_difference_that_is_sure_but_tiny_is_no_alarm():
    found = judged(Monitor(reference(0, texts=3000, alike=0.0)), 1, texts=3000, alike=0.0, shift=0.08)
    assert found.columns["entropy"]["ks"] > found.columns["entropy"]["limit"]
    assert not found.moved
    assert found.sentence.startswith("120000 steps show no sign")


@settings(max_examples=40, deadline=None)
@given(
    arrays(float, st.tuples(st.integers(1, 60), st.just(2)), elements=st.floats(-5, 5) | st.just(np.nan)),
    st.integers(1, 5),
)
def test_the_same_steps_have_not_moved(table, texts):
    seen = columns(table, np.arange(len(table)) % 2 == 0, table[:, 1])
    found = traffic(seen, np.arange(len(table)) % texts)
    found = json.loads(json.dumps(found, allow_nan=False))
    again = Monitor(found).update(seen)
    assert not again.moved
    for name, column in again.columns.items():
        assert column["ks"] == 0
        assert column["psi"] == pytest.approx(0, abs=1e-9)
        assert column["steps"] == found["columns"][name]["steps"]


def test_a_column_that_is_never_known_now_is_no_alarm():
    table, escalated, accepted, _ = steps(1)
    found = Monitor(reference(0)).update(columns(table * [1, np.nan], escalated, accepted))
    assert not found.moved
    assert found.columns["agreed"]["steps"] == 0


def test_steps_that_do_not_fit_are_refused():
    *seen, texts = steps(0)
    seen = columns(*seen)
    monitor = Monitor(reference(0))
    with pytest.raises(ValueError, match="the steps lack agreed"):
        monitor.update({name: column for name, column in seen.items() if name != "agreed"})
    with pytest.raises(ValueError, match="one per step"):
        traffic(seen, texts[1:])
    with pytest.raises(ValueError, match="some steps"):
        traffic({name: column[:0] for name, column in seen.items()}, texts[:0])
    with pytest.raises(ValueError, match="the level is 0"):
        Monitor(reference(0), 0.0)
    assert monitor.batches == 0


def test_texts_read_again_show_what_the_policy_saw():
    small, large = toy_pair()
    prompts = toy_prompts(6)
    policy = Rule("entropy", 2.8)
    recorder = StepRecorder(policy)
    texts = write(Backoff([small, large], recorder), prompts, 10)
    assert texts == write(Backoff([small, large], policy), prompts, 10)
    seen = recorder.take()
    assert 0.1 < seen["escalated"].mean() < 0.9
    assert 0 < np.nanmean(seen["accepted"]) < 1
    assert len(seen["entropy"]) == sum(len(answer) for answer, _ in texts)
    answers = [answer for answer, _ in texts]
    found = traffic_of_texts(small, large, policy, prompts, texts, answers)
    live = traffic(seen, np.zeros(len(seen["entropy"])))
    for name, column in found["columns"].items():
        assert column["steps"] == live["columns"][name]["steps"]
        assert column["mean"] == pytest.approx(live["columns"][name]["mean"], abs=1e-4)
        np.testing.assert_allclose(column["cuts"], live["columns"][name]["cuts"], atol=1e-3)
    assert not Monitor(found).update(seen).moved
    assert not recorder.steps


def test_another_model_is_noticed():
    """What a monitor is for: the drafter was replaced, and the policy's features are no longer those it knew."""
    small, large = toy_pair()
    prompts, policy = toy_prompts(40), Rule("entropy", 2.8)
    texts = write(Backoff([small, large], policy), prompts, 12)
    monitor = Monitor(traffic_of_texts(small, large, policy, prompts, texts, [a for a, _ in texts]))
    for other, moved in ((small, False), (sharper(small), True)):
        recorder = StepRecorder(policy)
        write(Backoff([other, large], recorder), toy_prompts(40, seed=9), 12)
        assert monitor.update(recorder.take()).moved == moved


def test_the_command_compares_new_prompts_with_those_of_a_run(tuned_run, tmp_path, capfd):
    prompts = tuned_run.parent / "prompts.jsonl"
    assert main([str(tuned_run), "--prompts", str(prompts), "--batch", "8"]) == 0
    assert "steps show no sign that traffic has moved" in capfd.readouterr().out
    loop = tmp_path / "loop.jsonl"
    loop.write_text("".join(json.dumps({"id": f"p{i}", "prompt": "w5 " * 30}) + "\n" for i in range(40)))
    assert main([str(tuned_run), "--prompts", str(loop)]) == 1
    assert "Traffic has moved" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch", "0"), "--batch must be at least 1"),
        (("--level", "2"), "the level is 2"),
        (("--prompts", "none.jsonl"), "none.jsonl does not exist"),
    ],
)
def test_wrong_input_is_one_sentence(tuned_run, options, message, capfd):
    assert main([str(tuned_run), "--prompts", str(tuned_run.parent / "prompts.jsonl"), *options]) == 2
    assert message in capfd.readouterr().err


def test_a_policy_without_traffic_is_refused(tuned_run, tmp_path, capfd):
    folder = shutil.copytree(tuned_run, tmp_path / "run")
    policy = load(folder / "policy.json")
    policy.save(folder / "policy.json", policy.models, policy.provenance | {"traffic": None})
    assert main([str(folder), "--prompts", str(tuned_run.parent / "prompts.jsonl")]) == 2
    assert "holds no traffic" in capfd.readouterr().err


def sharper(lm):
    model = copy.deepcopy(lm.model)
    with torch.no_grad():
        model.lm_head.weight *= 3
    return LM(model, lm.tokenizer)
