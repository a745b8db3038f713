"""--batch-size: forwards are timed, texts priced and live runs kept going with so many rows; who uses less is told."""

import json
import logging

import numpy as np
import pytest
import torch
from tiny_runs import FAST, save_toys, toy_pair, toy_prompts, typed

from decoding import Autoregressive, Backoff, generate, generate_many
from decoding.cost.batch_size import timeless
from decoding.cost.costs import ModelCosts, seconds
from decoding.cost.timing import EACH, Stopwatch
from policies import Random, Rule, load
from train.evaluation import live
from train.fit_policy import main
from train.quality.metric import QualityMetric
from train.replay.pricing import handoff_seconds

SMALL, LARGE = {1: 1.0, 4: 1.5, 16: 4.0}, {1: 10.0, 4: 12.0, 16: 30.0}


def test_a_text_s_share_is_that_of_forwards_that_read_all_rows():
    one, four = ModelCosts((SMALL, LARGE)), ModelCosts((SMALL, LARGE), batch=4)
    assert one.share(-1, [1, 4]).tolist() == seconds(LARGE, [1, 4]).tolist() == [10.0, 12.0]
    assert four.share(-1, [1, 4]).tolist() == [3.0, 7.5]
    assert four.share(-1, 4, rows=1) == 12.0
    assert four.text(0, 4, 3) == 4.0 / 4 + 2 * 1.5 / 4
    assert one.joined(-1, [4], 0.3) == pytest.approx(one.share(-1, [4]))
    alone, all_at_once = four.joined(-1, [4], 0.0), four.joined(-1, [4], 1.0)
    assert alone == 12.0 and all_at_once == 7.5
    # Each of three others joins with 0.5: 1, 3, 3 and 1 of 8 times there are 1 to 4 rows.
    by_hand = sum(times / 8 * four.share(-1, 4, rows) for rows, times in ((1, 1), (2, 3), (3, 3), (4, 1)))
    assert four.joined(-1, [4], 0.5) == pytest.approx(by_hand)


def test_a_hand_off_in_a_batch_shares_the_calls_that_rows_make_at_once():
    four, writers = ModelCosts((SMALL, LARGE), batch=4), [0, 1, 0, 1]
    large = sum(four.joined(-1, [gap], 0.5)[0] for gap in (3 + 1, 2))
    assert handoff_seconds(3, writers, four) == pytest.approx(float(four.text(0, 3, 4)) + large)


def test_forwards_of_a_batch_have_as_many_tokens_in_each_of_as_many_rows_as_can_be():
    small, large = toy_pair()
    watch = Stopwatch([small, large], (1, 2, 5, 16), 8, batch=6)
    assert {n: watch._rows(n) for n in (1, 2, 5, 16, 6, 12, 54)} == {1: 1, 2: 2, 5: 5, 16: 4, 6: 6, 12: 6, 54: 6}
    assert set(watch.lengths) == {1, 2, 5, 16} | {6 * n for n in EACH}
    watch._time(watch.sessions[0], 12)
    assert watch.sessions[0].read.tolist() == [10] * 6 and watch.sessions[0].reads == [12]


@pytest.mark.parametrize(("prompts", "sizes"), [(3, [3]), (8, [8]), (11, [11]), (12, [8, 4]), (18, [8, 10])])
def test_groups_are_of_two_batches(prompts, sizes):
    groups = live.in_groups(list(range(prompts)), 4)
    assert [n for group in groups for n in group] == list(range(prompts))
    assert [len(group) for group in groups] == sizes
    assert len(live.in_groups(list(range(prompts)), 1)) == prompts


def test_live_runs_in_batches_write_what_single_ones_write(tmp_path):
    small, large = toy_pair()
    prompts, metric = toy_prompts(13), QualityMetric(large, budget=10)
    decoders = {"large": Autoregressive(large), "own": Backoff([small, large], Random(0.4))}
    how = decoders, prompts, 10, metric
    single = live.measure(*how, tmp_path / "one.jsonl", "one")
    batched = live.measure(*how, tmp_path / "many.jsonl", "many", batch=4)
    for name in decoders:
        for column in ("tokens", "loss", "regret", "large_share"):
            assert batched[name][column] == pytest.approx(single[name][column], abs=1e-6)
        assert batched[name]["group"].tolist() == [0] * 8 + [1] * 5
        assert single[name]["group"].tolist() == list(range(13))
        rate = batched[name]["seconds"] / batched[name]["tokens"]
        assert np.ptp(rate[:8]) < 1e-9 < rate.min()
    low, high = live.speed_interval(batched, lambda rows: live.speedup(batched, "own", rows))
    assert low <= live.speedup(batched, "own") <= high
    again = live.measure(*how, tmp_path / "many.jsonl", "many", batch=4)
    assert again["own"]["seconds"].tolist() == batched["own"]["seconds"].tolist()


def texts(decoder, rows):
    ids = torch.tensor([[5, 6, 7]] * rows)
    generate(decoder, ids, max_new_tokens=2)


def test_a_policy_is_warned_of_once_where_batches_are_others_than_it_was_tuned_for(caplog):
    small, large = toy_pair()
    policy = Rule("entropy", 1.0)
    decoder = Backoff([small, large], policy)
    with caplog.at_level(logging.WARNING):
        texts(decoder, 8)
        policy.provenance = {"batch_size": 1}
        texts(decoder, 2)
        with timeless():
            texts(decoder, 8)
        assert not caplog.records
        list(generate_many(decoder, [[5, 6]] * 3, batch_size=3, max_new_tokens=2))
        texts(decoder, 8)
    assert [record.getMessage() for record in caplog.records] == [
        "the policy was tuned for single texts and decides in batches of 3, where its speedup and its best threshold "
        "are others; tune it with --batch-size 3"
    ]


@pytest.mark.slow
def test_the_main_job_tunes_for_a_batch(tmp_path, capfd):
    toys = save_toys(tmp_path / "toys", 60)
    options = toys | {"output": tmp_path} | FAST | {"max_new_tokens": 8, "target_speedup": 1.2, "timed": 2}
    assert main(typed(options | {"batch_size": 3})) == 0
    folder = tmp_path / "default"
    result = json.loads((folder / "result.json").read_text())
    cost = json.loads((folder / "cost.json").read_text())["seconds"]
    assert cost["batch"] == 3 and {"3", "6", "15", "27"} <= set(cost["tables"][0])
    assert load(folder / "policy.json").provenance["batch_size"] == result["batch_size"] == 3
    assert "held-out prompts in batches of 3 the tuned policy is" in result["verdict"]
    rows = [json.loads(line) for line in (folder / "holdout.jsonl").read_text().splitlines()]
    assert len(rows) == result["timed"] == 6 and all(row["setting"].endswith("in batches of 3") for row in rows)
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "batch size 3" in report and "in batches of 3, in which a text that ends is replaced" in report
    capfd.readouterr()
    assert main(typed(options | {"batch_size": 2})) == 2
    assert "holds a run with another --batch-size" in capfd.readouterr().err
    assert main(typed(options | {"batch_size": 0, "name": "none"})) == 2
    assert "--batch-size must be at least 1, not 0" in capfd.readouterr().err
