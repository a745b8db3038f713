"""Calibration: the threshold at which a policy escalates a wanted share of tokens, from a quantile of its scores.

It needs no labels and no refitting, so a threshold can be set again for another task or another share.
"""

import numpy as np
import torch

from policies import Policy
from train.traces.handoff_traces import Traces


def risks(policy: Policy, traces: Traces) -> np.ndarray:
    """[rows] the scores of ``policy``; unknown counts as the highest, as it escalates."""
    table = torch.from_numpy(traces.table(policy.names)).to(policy.threshold.device)
    risk = policy.score_table(table).cpu().numpy().astype(float)
    return np.where(np.isnan(risk), np.inf, risk)


def cut(risk: np.ndarray, quantile: float) -> float:
    """The score below which the share ``quantile`` of the known ones lies; above all of them at 1."""
    known = risk[np.isfinite(risk)]
    if quantile >= 1:
        return float(np.nextafter(np.float32(known.max()), np.float32(np.inf)))
    return float(np.quantile(known, quantile))


def calibrate(policy: Policy, traces: Traces, rate: float) -> Policy:
    """``policy`` with the threshold at which it escalates the share ``rate`` in [0, 1] of ``traces``.

    The share holds for texts like these; where a policy's own decisions lead elsewhere, it has to be measured.
    """
    return policy.with_threshold(cut(risks(policy, traces), 1.0 - rate))
