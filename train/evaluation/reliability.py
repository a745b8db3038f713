"""Reliability of predicted risks: bins of the risk beside the mean label, and the Brier score."""

import numpy as np

from train.common.result import Reliability, ReliabilityBin


def reliability(risk: np.ndarray, label: np.ndarray, bins: int = 10) -> Reliability:
    """Predicted ``risk`` [n] against what was found, ``label`` [n], both in [0, 1].

    ``bins`` hold equally many rows each, those of one risk together: where the risks are, not where they could be.
    ``brier`` is the mean squared difference (Brier 1950), ``constant`` that of the best constant, which is the labels'
    variance, and ``error`` the mean distance of the bins from the diagonal (expected calibration error, equal masses).
    Rows of unknown risk are left out. ValueError when none is left.
    """
    known = np.isfinite(risk)
    risk, label = np.asarray(risk, float)[known], np.asarray(label, float)[known]
    if not len(risk):
        raise ValueError("no row has a known risk; reliability needs some")
    edges = np.unique(np.quantile(risk, np.arange(1, bins) / bins))
    bin_of = np.searchsorted(edges, risk, side="right")
    found = [
        ReliabilityBin(int(own.sum()), float(risk[own].mean()), float(label[own].mean()))
        for own in (bin_of == i for i in range(len(edges) + 1))
        if own.any()
    ]
    error = sum(b.rows * abs(b.predicted - b.observed) for b in found) / len(risk)
    return Reliability(len(risk), float(((risk - label) ** 2).mean()), float(label.var()), error, found)
