"""Labels that a learned policy is fitted to: how bad it would be to keep the small model's token."""

import numpy as np

from train.traces.handoff_traces import Traces

KL_CUT = 0.95
"""Nats of KL(small || large) in the code of Backoff Decoding's authors. A small drafter is above it nearly everywhere
(the shipped one at 0.80 of the positions), so the label would hardly vary; hence the median."""


def labels(traces: Traces, kind: str, cut: float | None = None) -> np.ndarray:
    """[rows] in [0, 1]: how bad the small model's token would be.

    ``regret`` is the guarded loss that escalating would save; ``kl`` is 1 where KL(small || large) is above ``cut``
    nats, by default its median ("Backoff Decoding": the classifier's label); ``disagree`` is 1 where the best tokens
    differ.
    """
    if kind == "regret":
        return traces.risk
    if kind == "kl":
        cut = float(np.median(traces["kl"])) if cut is None else cut
        return (traces["kl"] > cut).astype(float)
    return (traces["small_token"] != traces["large_token"]).astype(float)
