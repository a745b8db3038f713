"""Calibration: a threshold for a wanted share, from scores alone."""

import numpy as np
import pytest
from trace_specimens import made_up

from policies import Logistic, Rule
from train.search.labels import labels
from train.search.thresholds import calibrate, cut, risks

TRACES = made_up(seed=3)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3, 0.5, 0.95, 1.0])
def test_the_share_handed_on_is_the_one_wanted(rate):
    names = ("entropy", "top1")
    learned = Logistic(names).fit(TRACES.table(names), labels(TRACES, "kl"))
    for fitted in (Rule("entropy", 9.0), Rule("top1", 9.0, "<="), learned):
        policy = calibrate(fitted, TRACES, rate)
        handed = risks(policy, TRACES) >= policy.threshold.item()
        assert handed.mean() == pytest.approx(rate, abs=2 / len(TRACES))
        # On other texts of the same kind about as many.
        assert (risks(policy, made_up(seed=4)) >= policy.threshold.item()).mean() == pytest.approx(rate, abs=0.12)


def test_unknown_is_riskiest_and_moves_no_quantile():
    agreed = Rule("agreed", 0.0)
    risk = risks(agreed, TRACES)
    assert (risk[TRACES["position"] == 0] == np.inf).all()
    assert cut(risk, 0.5) == pytest.approx(np.median(risk[np.isfinite(risk)]))
    assert np.isfinite(cut(risk, 1.0))
    assert cut(risk, 1.0) > risk[np.isfinite(risk)].max()
