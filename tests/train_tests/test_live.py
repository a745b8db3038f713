"""Live measurement: turns, resuming, and the arithmetic of speed and chance."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_runs import toy_pair, toy_prompts

from decoding import Autoregressive, Backoff
from policies import Random, Rule
from train.evaluation import holdout, live, rivals
from train.quality.metric import QualityMetric

NEW = 6
prompts = toy_prompts(5)


@pytest.fixture(scope="module")
def pair():
    return toy_pair()


@pytest.fixture
def run(pair, tmp_path, monkeypatch):
    """run(names, **options): measure these decoders; run.order lists who answered what with which seed."""
    small, large = pair
    decoders = {
        "large": Autoregressive(large),
        "small": Backoff([small, large], Rule.never()),
        "random": Backoff([small, large], Random(0.5)),
    }
    answer = live._answer

    def noted(decoder, prompt, new, sampling, seed=0):
        name = next(name for name, known in decoders.items() if known is decoder)
        call.order.append((name, prompt.id, new, seed))
        return answer(decoder, prompt, new, sampling, seed)

    def call(names=("large", "small", "random"), count=5, **options):
        call.order = []
        chosen = {name: decoders[name] for name in names}
        return live.measure(chosen, prompts[:count], NEW, QualityMetric(large), call.path, "test", **options)

    call.path = tmp_path / "live.jsonl"
    monkeypatch.setattr(live, "_answer", noted)
    return call


def test_decoders_take_turns_in_an_order_that_rotates(run):
    run()
    assert run.order[:3] == [(name, "p0", 8, 0) for name in ("large", "small", "random")]  # the warm-up
    a, b, c = "large", "small", "random"
    assert [name for name, *_ in run.order[3:]] == [a, b, c, b, c, a, c, a, b, a, b, c, b, c, a]
    assert [row[1:] for row in run.order[3:]] == [(f"p{i}", NEW, i) for i in range(5) for _ in range(3)]


def test_what_is_measured(run):
    measured = run()
    rows = [json.loads(line) for line in run.path.read_text().splitlines()]
    assert [row["id"] for row in rows] == [p.id for p in prompts]
    assert measured.keys() == {"large", "small", "random"}
    for name, columns in measured.items():
        assert columns["seconds"].tolist() == [row["methods"][name]["seconds"] for row in rows]
        assert (columns["seconds"] > 0).all()
        assert ((columns["tokens"] >= 1) & (columns["tokens"] <= NEW)).all()
        assert ((columns["loss"] >= 0) & (columns["loss"] <= 1)).all()
    assert (measured["large"]["loss"] == 0).all()
    assert (measured["large"]["large_share"] == 1).all()
    assert (measured["random"]["large_share"] > 0).any()
    assert measured["small"]["loss"].mean() > 0
    # Every prompt has its own noise: the same positions are not handed off in all of them.
    assert len({tuple(row["methods"]["random"]["writers"]) for row in rows if row["methods"]["random"]}) > 1


@pytest.mark.parametrize("cut", [1, 20, "all"])
def test_a_run_goes_on_after_a_last_line_that_was_cut(run, cut):
    whole = run()
    lines = run.path.read_bytes().splitlines(keepends=True)
    end = len(lines[3]) - 1 if cut == "all" else cut
    run.path.write_bytes(b"".join(lines[:3]) + lines[3][:end])
    again = run()
    assert {prompt for _, prompt, new, _ in run.order if new == NEW} == {"p3", "p4"}
    assert run.path.read_bytes().splitlines(keepends=True)[:3] == lines[:3]
    assert len(run.path.read_bytes().splitlines()) == 5
    for name in whole:
        assert again[name]["seconds"][:3].tolist() == whole[name]["seconds"][:3].tolist()
        for field in ("tokens", "loss", "regret", "large_share"):
            assert again[name][field].tolist() == whole[name][field].tolist()


def test_a_finished_measurement_asks_nobody(run):
    whole = run()
    content = run.path.read_bytes()
    again = run()
    assert run.order == []
    assert run.path.read_bytes() == content
    assert again["small"]["seconds"].tolist() == whole["small"]["seconds"].tolist()


def test_other_decoders_or_another_setting_are_measured_again(run):
    run(count=2)
    run(names=("large", "small"), count=2)
    assert len(run.order) == 2 + 4
    run(count=2)
    assert run.order == []
    run(count=2, setting="threshold 0.7")
    assert len(run.order) == 3 + 6
    run(count=2, setting="threshold 0.7")
    assert run.order == []


MEASURED = {
    "large": {"seconds": np.array([2.0, 4.0]), "tokens": np.array([20.0, 20.0])},
    "small": {"seconds": np.array([1.0, 1.0]), "tokens": np.array([10.0, 40.0])},
}


def test_speedup_compares_seconds_per_token_of_sums():
    assert live.speedup(MEASURED, "small") == pytest.approx((6 / 40) / (2 / 50))
    assert live.speedup(MEASURED, "small", np.array([0])) == pytest.approx((2 / 20) / (1 / 10))
    assert live.speedup(MEASURED, "small", np.array([1, 1, 0])) == pytest.approx((10 / 60) / (3 / 90))
    assert live.speedup(MEASURED, "large") == 1


def test_bootstrap():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = live.bootstrap(lambda rows: values[rows].mean(), 400)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)
    assert live.bootstrap(lambda rows: values[rows].mean(), 400) == [low, high]
    narrow = live.bootstrap(lambda rows: values[rows].mean(), 400, confidence=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert live.bootstrap(lambda rows: 7.0, 5) == [7.0, 7.0]


def controls(tuned, low=2.0, high=4.0):
    """Three prompts of 10 tokens; seconds per token of the methods are 1 / speed of the large model's."""
    ten, losses = np.full(3, 10.0), {"random_low": [0.2, 0.3, 0.4], "random_high": [0.6, 0.5, 0.7]}
    speeds = {"large": 1.0, "random_low": low, "random_high": high, "tuned": tuned}
    return {
        name: {
            "seconds": ten / speed,
            "tokens": ten,
            "loss": np.array(losses.get(name, [0.1, 0.1, 0.1])),
        }
        for name, speed in speeds.items()
    }


@pytest.mark.parametrize(
    ("tuned", "share"), [(2.0, 0.0), (4.0, 1.0), (1 / 0.375, 0.5), (1 / 0.3, 0.8), (1.0, -2.0), (8.0, 1.5)]
)
def test_a_mixture_of_two_rates_as_fast_as_the_policy(tuned, share):
    measured, rows = controls(tuned), np.arange(3)
    assert rivals.mixture(measured, rows) == pytest.approx(share)
    assert rivals.random_loss(measured, rows) == pytest.approx((1 - share) * 0.3 + share * 0.6)
    assert rivals.random_loss(measured, np.array([0, 0])) == pytest.approx((1 - share) * 0.2 + share * 0.6)
    compared = rivals.against_random(measured)
    assert compared.bracketed == (0 <= share <= 1 + 1e-12)
    assert compared.difference == pytest.approx(0.1 - compared.random_loss_at_same_speed)
    assert compared.interval[0] <= compared.difference <= compared.interval[1]


@pytest.mark.parametrize(("tuned", "bracketed"), [(3.0, True), (2.0, False)])
def test_two_rates_of_one_speed_bracket_that_speed_only(tuned, bracketed):
    compared = rivals.against_random(controls(tuned, low=3.0, high=3.0))
    assert compared.bracketed == bracketed
    assert compared.random_loss_at_same_speed == pytest.approx(0.3)
    said = rivals.beside_random(compared)
    assert ("than chance" in said) == bracketed and (rivals.NOT_BRACKETED in said) != bracketed


def test_rates_bracket_the_policy():
    speeds = np.linspace(0.8, 4.0, 201)
    search = SimpleNamespace(
        random_curve=lambda: np.stack([speeds, speeds], 1), point=lambda policy, quantile: (2.0, 0.1)
    )
    low, high = rivals.random_rates(search, SimpleNamespace(policy=None, quantile=0.5, faster=1.1))
    for rate, factor in ((low, 0.85), (high, 1.18)):
        assert 0.8 + (1 - rate) * 3.2 == pytest.approx(2.0 * 1.1 * factor, abs=1e-6)  # random needs no correction
    assert low > high


def test_a_row_of_the_table():
    measured = controls(2.5) | {"small": {"seconds": np.full(3, 2.0), "tokens": np.full(3, 8.0)}}
    measured["small"] |= {"loss": np.array([0.5, 0.5, 0.8])}
    for columns in measured.values():
        columns |= {"regret": np.full(3, 0.7), "large_share": np.array([0.0, 0.5, 1.0]), "score": np.full(3, np.nan)}
        columns["capped"] = np.array([0.0, 0.0, 1.0])
    row = holdout.summary(measured, measured, "small", holdout.Contender("small model alone", None))
    assert row.speedup == pytest.approx(1 / (2 / 8))
    assert row.tokens_per_second == pytest.approx(4)
    assert row.loss == pytest.approx(0.6)
    assert row.length_ratio == pytest.approx(0.8)
    assert row.total_time_ratio == pytest.approx(0.2)
    assert row.recovered == pytest.approx(0)
    assert row.large_share == pytest.approx(0.5)
    assert row.at_cap == pytest.approx(1 / 3) and row.score is None
    tuned = holdout.summary(measured, measured, "tuned", holdout.Contender("tuned", None, exact=True))
    assert tuned.recovered == pytest.approx(1 - 0.1 / 0.6) and tuned.large_share is None
    assert holdout.summary(measured, measured, "large", holdout.Contender("large", None)).speedup_interval == [1.0, 1.0]
