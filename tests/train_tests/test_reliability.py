"""Reliability: the bins and the Brier score say how true a risk is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.evaluation.reliability import reliability

unit = st.floats(0, 1, width=32)


def test_a_true_risk_lies_on_the_diagonal():
    draw = np.random.default_rng(0)
    risk = draw.beta(2, 5, 100_000)
    label = (draw.random(len(risk)) < risk).astype(float)
    found = reliability(risk, label)
    assert found.brier == pytest.approx((risk * (1 - risk)).mean(), abs=0.003)
    assert found.brier < found.constant
    assert found.error < 0.01
    assert [b.rows for b in found.bins] == [10_000] * 10
    for one in found.bins:
        assert one.observed == pytest.approx(one.predicted, abs=0.02)


def test_a_risk_that_is_twice_too_high_is_seen():
    label = np.tile([0.0, 0.2, 0.4], 100)
    found = reliability(2 * label, label)
    assert found.error == pytest.approx(0.2)
    assert found.brier == pytest.approx((0.2**2 + 0.4**2) / 3)
    assert [b.predicted for b in found.bins] == pytest.approx([0, 0.4, 0.8])
    assert [b.observed for b in found.bins] == pytest.approx([0, 0.2, 0.4])


@given(st.lists(st.tuples(unit, unit), min_size=1, max_size=40), st.integers(1, 12))
def test_bins_hold_every_row_once(rows, bins):
    risk, label = np.array(rows, float).T
    found = reliability(risk, label, bins)
    assert sum(b.rows for b in found.bins) == len(rows)
    assert len(found.bins) <= bins
    total = sum(b.rows * b.observed for b in found.bins)
    assert total == pytest.approx(label.sum(), abs=1e-6)
    assert [b.predicted for b in found.bins] == sorted(b.predicted for b in found.bins)
    assert found.error**2 <= found.brier + 1e-9


def test_unknown_risks_are_left_out():
    found = reliability(np.array([0.5, np.inf, np.nan]), np.array([1.0, 0.0, 0.0]))
    assert (found.rows, found.brier, found.constant) == (1, 0.25, 0.0)
    with pytest.raises(ValueError, match="no row has a known risk"):
        reliability(np.array([np.inf]), np.zeros(1))
