"""Estimates over prompts with their intervals."""

from collections.abc import Callable

import numpy as np

from train.evaluation.live import bootstrap


def estimate(name: str, statistic: Callable, n: int, draws: int = 2000) -> dict:
    """``name``: the value of ``statistic(rows)`` on all ``n`` prompts; ``name``_interval: its 95 % bootstrap interval.

    The value is None where the statistic does not apply.
    """
    value = statistic(np.arange(n))
    if value is None:
        return {name: None, f"{name}_interval": None}
    return {name: float(value), f"{name}_interval": bootstrap(statistic, n, draws=draws)}
