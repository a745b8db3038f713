"""The live correction: what a few prompts may change about what replay said, and what not."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import tiny

from policies import Rule
from train import live, tune
from train.search import GRID, Goal

TRIAL = SimpleNamespace(number=3, params={"quantile": 0.5})
CURVE = np.stack([1 + 4 * GRID, 0.6 * GRID], 1)


def corrected(monkeypatch, goal, speedup, loss, grader=None, trials=(TRIAL,)):
    """What finalists become that replay puts at 3x and a loss of 0.3, and live runs at ``speedup`` and ``loss``."""
    measured = {live.LARGE: {"seconds": np.full(4, 8.0), "tokens": np.full(4, 8.0)}}
    for trial, one in zip(trials, np.broadcast_to(speedup, len(trials)), strict=True):
        own = {"seconds": np.full(4, 8.0 / one), "tokens": np.full(4, 8.0), "loss": np.zeros(4) + loss}
        measured[f"trial {trial.number}"] = own
    monkeypatch.setattr(live, "measure", lambda *args: measured)
    search = SimpleNamespace(
        policy=lambda params: Rule("entropy", 0.0),
        threshold=lambda policy, quantile: quantile,
        replay=lambda policy, quantile: (3.0, 0.3),
        curve=lambda policy: CURVE,
    )
    config, lm = SimpleNamespace(max_new_tokens=8), tiny(layers=1)
    job = SimpleNamespace(small=lm, large=lm, splits={"tune": []}, config=config, folder=Path("unused"), goal=goal)
    job.judge = SimpleNamespace(grader=grader)
    return tune.tune_live(job, search, list(trials))


def test_a_slower_live_run_asks_for_more_of_the_small_model(monkeypatch):
    chosen = corrected(monkeypatch, Goal(speedup=1.5), speedup=2.4, loss=0.3)
    assert chosen.faster == pytest.approx(0.8)
    assert (1 + 4 * chosen.quantile) * 0.8 == pytest.approx(1.5, abs=0.02)
    assert chosen.policy.threshold.item() == pytest.approx(chosen.quantile)


def test_the_luck_of_one_finalist_is_not_its_own(monkeypatch):
    """Of three that replay cannot tell apart, the one that was fastest live was given a threshold that the next prompts
    did not bear out: 1.09x for 1.5x."""
    trials = [SimpleNamespace(number=n, params={"quantile": 0.5}) for n in (3, 4, 5)]
    chosen = corrected(monkeypatch, Goal(speedup=1.5), speedup=[3.6, 3.0, 2.4], loss=0.3, trials=trials)
    assert chosen.faster == pytest.approx(1.0)
    assert 1 + 4 * chosen.quantile == pytest.approx(1.5, abs=0.02)


def test_a_worse_live_run_tightens_a_loss_budget(monkeypatch):
    chosen = corrected(monkeypatch, Goal(budget=0.2), speedup=3.0, loss=0.6)
    assert 0.6 * chosen.quantile == pytest.approx(0.1, abs=0.004)


def test_a_lucky_live_run_does_not_loosen_a_loss_budget(monkeypatch):
    """It once did: a policy with next to no loss on ten prompts was let off everything, and lost 0.56 for 0.05."""
    chosen = corrected(monkeypatch, Goal(budget=0.2), speedup=3.0, loss=0.003)
    assert chosen.worse == pytest.approx(0.01)
    assert 0.6 * chosen.quantile == pytest.approx(0.2, abs=0.004)


def test_a_grader_counts_in_units_of_its_own(monkeypatch):
    """A lower loss loosens the budget, but by its mean and a standard error."""
    chosen = corrected(monkeypatch, Goal(budget=0.1), speedup=3.0, loss=0.06, grader="own:grader")
    assert 0.6 * chosen.quantile * 0.2 == pytest.approx(0.1, abs=0.001)
    varied = np.array([0.0, 0.24, 0.0, 0.0])  # of the same mean
    chosen = corrected(monkeypatch, Goal(budget=0.1), speedup=3.0, loss=varied, grader="own:grader")
    assert 0.6 * chosen.quantile * (0.06 + varied.std() / 2) / 0.3 == pytest.approx(0.1, abs=0.002)


def test_a_budget_that_allows_no_speedup_gives_no_policy(monkeypatch):
    assert corrected(monkeypatch, Goal(budget=0.005), speedup=3.0, loss=0.3) is None
