"""Replay: speculative decoding is replayed to the last call, backoff as priced by hand."""

import numpy as np
import pytest
import torch
from tiny_runs import toy_pair, toy_prompts

from decoding import Speculative, generate
from decoding.cost.costs import ModelCosts, seconds
from policies import token_classes
from train.common.generations import answers as large_answers
from train.replay.backoff import backoff, best_length, rounds, speculative
from train.traces.collect_handoff import trajectory
from train.traces.handoff_traces import Traces

NEW = 20
SMALL = {1: 1.0, 2: 1.5, 4: 2.0, 8: 4.0}
LARGE = {1: 10.0, 2: 11.0, 4: 14.0, 8: 30.0}
cost = ModelCosts((SMALL, LARGE))


@pytest.fixture(scope="module")
def logged():
    """(pair, prompts, traces of the large model alone): some answers end early, some in the middle of a draft."""
    pair, prompts = toy_pair(), toy_prompts(6, seed=10)
    classes = token_classes(pair[1].tokenizer)
    answers = large_answers(pair[1], prompts, NEW)
    rows = [
        trajectory(*pair, p, a, [1] * len(a), a, classes, "large", 1.0) for p, a in zip(prompts, answers, strict=True)
    ]
    lengths = {len(a) for a in answers}
    assert NEW in lengths
    assert len(lengths) > 1
    return pair, prompts, Traces({name: np.concatenate([row[name] for row in rows]) for name in rows[0]})


@pytest.mark.parametrize("length", [1, 3, 8])
def test_speculative_is_replayed_exactly(logged, length):
    pair, prompts, traces = logged
    kept = 0
    for prompt in prompts:
        own = traces.of({prompt.id})
        replayed = rounds(own, length, NEW)
        live = generate(Speculative(pair, length=length), torch.tensor([prompt.ids]), max_new_tokens=NEW)
        assert live.lengths[0] == len(own)
        assert live.counts["drafted"] == replayed.drafted.sum()
        assert live.counts["calls"] == [replayed.drafted.sum(), len(replayed.drafted)]
        calls = replayed.drafted > 0
        read = [(replayed.small_reads + replayed.drafted - 1)[calls].sum(), replayed.large_reads.sum()]
        assert live.counts["tokens_read"] == read
        assert live.counts["accepted"] == replayed.accepted.sum()
        kept += int(replayed.accepted.sum())
    assert 0 < kept < rounds(traces, length, NEW).drafted.sum()


def test_the_rounds_of_all_trajectories_are_those_of_each(logged):
    _, prompts, traces = logged
    together = np.array(rounds(traces, 4, NEW))
    alone = [np.array(rounds(traces.of({p.id}), 4, NEW)) for p in prompts]
    assert together[0].tolist() == np.repeat(range(len(prompts)), [len(one[0]) for one in alone]).tolist()
    assert together[1:].tolist() == np.concatenate(alone, 1)[1:].tolist()


def table(prompt_tokens, agree, regret=None, trajectories=1):
    """Traces with these columns, the same for every trajectory."""
    n = len(agree)
    one = {
        "position": np.arange(n),
        "prompt_tokens": np.full(n, prompt_tokens),
        "small_token": np.where(agree, 5, 6),
        "large_token": np.full(n, 5),
        "regret": np.zeros(n) if regret is None else np.asarray(regret, float),
        "small_repeats": np.zeros(n, bool),
        "large_repeats": np.zeros(n, bool),
        "small_ends": np.zeros(n, bool),
        "large_ends": np.zeros(n, bool),
    }
    return Traces({name: np.tile(column, trajectories) for name, column in one.items()})


def test_speculative_priced_by_hand():
    traces = table(4, [1, 1, 0, 1, 1, 1], trajectories=2)
    replayed = rounds(traces, 2, budget=6)
    # Draft 2 keep 2 and one more, draft 2 keep 2 and one more: 6 tokens.
    assert replayed.drafted.tolist() == [2, 2] * 2
    assert replayed.accepted.tolist() == [2, 2] * 2
    small = (2.0 + 1.0) + (1.5 + 1.0)  # reads the prompt, 1; the last of its draft and the bonus token, 1
    large = seconds(LARGE, 6) + seconds(LARGE, 3)
    alone = 14.0 + 5 * 10.0
    assert speculative(traces, 2, cost, budget=6) == pytest.approx(alone / (small + large))
    # Draft 3 keep 2 and correct the third, then the budget leaves room for 2.
    replayed = rounds(traces, 3, budget=6)
    assert replayed.drafted.tolist() == [3, 2] * 2
    assert replayed.accepted.tolist() == [2, 2] * 2
    small = (2.0 + 2.0) + (1.0 + 1.0)
    large = seconds(LARGE, 7) + seconds(LARGE, 3)
    assert speculative(traces, 3, cost, budget=6) == pytest.approx(alone / (small + large))
    # With more budget the text ends by an EOS, which the draft runs past.
    assert rounds(traces, 3, budget=20).drafted.tolist() == [3, 3] * 2
    assert rounds(traces, 3, budget=20).accepted.tolist() == [2, 3] * 2


def test_a_budget_of_one_drafts_nothing():
    traces = table(4, [1])
    assert rounds(traces, 3, budget=1).drafted.tolist() == [0]
    assert speculative(traces, 3, cost, budget=1) == pytest.approx(1)


def test_best_length():
    best, speed = best_length(table(4, [1, 1, 1, 0] * 8), cost, budget=32)
    assert (best, speed) == max(
        ((n, speculative(table(4, [1, 1, 1, 0] * 8), n, cost, 32)) for n in range(1, 9)), key=lambda pair: pair[1]
    )
    assert best == 3


def test_backoff_priced_by_hand():
    traces = table(4, [1] * 6, regret=[1.0, 0.0, 2.0, 9.0, 5.0, 0.5])
    escalate = np.array([0, 1, 0, 0, 1, 0], bool)
    speedup, loss = backoff(traces, escalate, cost)
    small = 2.0 + 5 * 1.0  # the prompt, then one token at a time
    # The prompt and the token before position 1; then the three written since: itself one, two by the small model.
    large = seconds(LARGE, 4 + 1) + seconds(LARGE, 3)
    assert speedup == pytest.approx((14.0 + 5 * 10.0) / (small + large))
    assert loss == pytest.approx((0.2 + 0 + 0.4 + 1.0 + 0 + 0.1) / 6)


def test_what_replay_charges_besides_regret():
    """A loop costs 1 whoever goes on with it, so does a missed stop, and the small model ends nothing by itself."""
    traces = table(4, [1, 0, 0, 0, 0], regret=[0.0, 0.5, 2.0, 1.5, 1.5])
    traces.columns["small_repeats"] = np.array([1, 1, 0, 0, 0], bool)
    traces.columns["large_repeats"] = np.array([1, 0, 0, 0, 1], bool)
    traces.columns["small_ends"] = np.array([0, 0, 1, 0, 0], bool)
    traces.columns["large_ends"] = np.array([0, 0, 0, 1, 0], bool)
    assert traces.risk.tolist() == pytest.approx([0, 1, 0.4, 1, 0])
    kept = backoff(traces, np.zeros(5, bool), cost)
    assert kept[1] == pytest.approx((1 + 1 + 0 + 1 + 0.3) / 5)
    assert kept[0] == backoff(traces, np.array([0, 0, 1, 0, 0], bool), cost)[0]  # the end was handed on
    assert backoff(traces, np.ones(5, bool), cost)[1] == 0  # the large model's own loop
    assert backoff(traces, np.array([1, 1, 0, 0, 1], bool), cost)[1] == pytest.approx((1 + 1) / 5)  # once led there


def test_trajectories_do_not_touch_each_other():
    traces = table(4, [1] * 6, regret=[1.0, 0.0, 2.0, 9.0, 5.0, 0.5], trajectories=3)
    escalate = np.array([0, 1, 0, 0, 1, 0] + [0] * 6 + [1] * 6, bool)
    speedup, loss = backoff(traces, escalate, cost)
    small = 3 * (2.0 + 5 * 1.0)
    large = seconds(LARGE, 5) + seconds(LARGE, 3) + seconds(LARGE, 4) + 5 * 10.0
    assert speedup == pytest.approx(3 * (14.0 + 5 * 10.0) / (small + large))
    assert loss == pytest.approx((1.7 / 6 + 2.7 / 6 + 0) / 3)


def test_always_and_never(logged):
    traces = logged[2]
    speedup, loss = backoff(traces, np.ones(len(traces), bool), cost)
    assert speedup < 1
    assert loss == 0
    speedup, loss = backoff(traces, np.zeros(len(traces), bool), cost)
    assert speedup > 1
    clipped = np.where(traces["small_ends"], 0, traces.small_cost)
    each = [clipped[a:b].mean() for a, b in zip(traces.starts[:-1], traces.starts[1:], strict=True)]
    assert loss == pytest.approx(np.mean(each))


def test_seconds_are_interpolated_and_go_on_beyond_the_table():
    assert seconds(LARGE, [1, 3, 8, 12]).tolist() == [10.0, 12.5, 30.0, 46.0]
