"""The timing table on a clock of our own: what a busy second of the machine does to it, and what is said then."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import tiny

from decoding.cost import timing
from decoding.cost.costs import ModelCosts
from train.evaluation import live

SECONDS = {"small": {1: 0.004, 2: 0.005, 16: 0.01, 64: 0.03}, "large": {1: 0.052, 2: 0.055, 16: 0.08, 64: 0.3}}


class Machine:
    """Forwards that take ``SECONDS`` times ``speed(now)`` on a clock that nothing else moves."""

    def __init__(self, monkeypatch, speed=lambda now: 1.0, room=1000):
        self.now, self.speed, self.room, self.order = 0.0, speed, room, []
        monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def model(self, name):
        def catch_up(ids, lengths, rows):
            n = int(lengths) - int(session.read)
            self.order.append((name, n))
            self.now += SECONDS[name][n] * self.speed(self.now)

        session = SimpleNamespace(read=torch.zeros(1), catch_up=catch_up, recorder=None)
        device = torch.device("cpu")
        return SimpleNamespace(context=self.room, vocab=37, device=device, session=lambda rows, capacity: session)

    def measure(self):
        said = []
        costs = timing.measure([self.model("small"), self.model("large")], (1, 2, 16, 64), say=said.append)
        self.precision = costs.precision
        return dict(zip(("small", "large"), costs.tables, strict=True)), said


def expect(tables, factor=1.0):
    for name, table in tables.items():
        assert table == pytest.approx({n: s * factor for n, s in SECONDS[name].items()})


def test_a_calm_machine_is_timed_a_few_times_and_nothing_is_said(monkeypatch):
    machine = Machine(monkeypatch)
    tables, said = machine.measure()
    expect(tables)
    assert not said and machine.precision == pytest.approx(0)
    assert machine.order[2:6] == [("small", 1), ("large", 1), ("small", 2), ("large", 2)]  # they take turns
    assert timing.SPAN < machine.now < 2 * timing.SPAN
    assert machine.order.count(("large", 64)) >= timing.FEW


@pytest.mark.slow
def test_a_quick_pair_is_timed_for_some_seconds(monkeypatch):
    """Else a busy second could be all that is seen of it."""
    machine = Machine(monkeypatch, lambda now: 0.001 if now > 1 else 0.004)
    expect(machine.measure()[0], 0.001)


def test_what_takes_seconds_is_timed_once(monkeypatch):
    machine = Machine(monkeypatch, lambda now: 10.0)
    tables, said = machine.measure()
    expect(tables, 10.0)
    assert not said
    counts = {n: machine.order.count(("large", n)) - 1 - (n == 1) for n in SECONDS["large"]}  # these warm up
    assert counts == {1: 4, 2: 4, 16: 3, 64: 0}  # 0.52, 0.55, 0.8 and 3 seconds
    assert machine.now < 40


def test_a_first_forward_that_compiles_is_not_the_price_of_a_token(monkeypatch):
    """In a fresh environment it was: a token of the drafter cost 2.5 seconds, and the main job drafted nothing."""
    machine = Machine(monkeypatch, lambda now: 600.0 if now == 0 else 1.0)
    expect(machine.measure()[0])


@pytest.mark.parametrize("began", np.arange(0.0, 4.0, 0.25))
def test_a_busy_second_is_outweighed(monkeypatch, began):
    """It once made 203 ms of 52."""
    tables, said = Machine(monkeypatch, lambda now: 4.0 if began <= now < began + 1 else 1.0).measure()
    expect(tables)
    assert not said


def test_small_differences_are_averaged_out(monkeypatch):
    draw = np.random.default_rng(0)
    machine = Machine(monkeypatch, lambda now: draw.uniform(0.95, 1.05))
    tables, said = machine.measure()
    assert not said and 0 < machine.precision <= timing.PRECISE
    for name, table in tables.items():
        assert table == pytest.approx(SECONDS[name], rel=0.05)


def test_more_noise_is_timed_longer(monkeypatch):
    def timed(noise):
        draw = np.random.default_rng(1)
        machine = Machine(monkeypatch, lambda now: draw.uniform(1 - noise, 1 + noise))
        machine.measure()
        return machine.order.count(("large", 1))

    assert timed(0.02) < timed(0.12) < timed(0.3)


def test_a_machine_that_never_calms_down_is_called_noisy(monkeypatch):
    draw = np.random.default_rng(0)
    machine = Machine(monkeypatch, lambda now: draw.uniform(1.0, 4.0))
    tables, said = machine.measure()
    (sentence,) = said
    assert sentence.startswith("the machine is noisy: some medians are known within ")
    assert int(sentence.split("%")[0].split()[-1]) > 100 * timing.CALM
    assert machine.now < 2 * len(SECONDS["large"]) * 2 * timing.POINT
    for name, table in tables.items():
        for n, seconds in table.items():
            assert SECONDS[name][n] * 0.999 <= seconds <= SECONDS[name][n] * 2.5


def test_a_slow_machine_is_not_a_noisy_one(monkeypatch):
    tables, said = Machine(monkeypatch, lambda now: 3.0).measure()
    expect(tables, 3.0)
    assert not said


@pytest.mark.parametrize("n", [5, 8, 11, 40])
def test_the_interval_of_a_median_holds_it_nine_times_in_ten(n):
    draw, held = np.random.default_rng(0), 0
    for _ in range(2000):
        low, high = timing.Timing(draw.exponential(1.0, n).tolist()).interval
        held += low <= np.log(2) <= high
    assert held / 2000 >= 0.88


def test_lengths_that_do_not_fit_are_left_out(monkeypatch):
    tables, _ = Machine(monkeypatch, room=100).measure()
    assert {tuple(table) for table in tables.values()} == {(1, 2, 16)}


@pytest.mark.slow
def test_real_sessions_are_timed():
    lm = tiny()
    tables = timing.measure([lm, lm], (1, 4), say=lambda sentence: None).tables
    assert [list(table) for table in tables] == [[1, 4], [1, 4]]
    assert all(0 < seconds < 60 for table in tables for seconds in table.values())


def test_live_seconds_over_those_of_the_table():
    prompts = [SimpleNamespace(ids=(5,) * n) for n in (2, 16)]
    measured = {"large": {"seconds": np.array([0.5, 1.0]), "tokens": np.array([4.0, 11.0])}}
    cost = ModelCosts((SECONDS["large"],))
    assert live.over_table(measured, prompts, cost) == pytest.approx(1.5 / (0.055 + 0.08 + 13 * 0.052))
