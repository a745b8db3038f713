"""The tuned decoder beside its rivals on the held-out prompts: chance at the same speed, or another decoder."""

import math

import numpy as np

from train.common.job import Tuned
from train.common.result import AgainstRandom, AgainstRival
from train.evaluation import live
from train.search.backoff import GRID, Search

BRACKET = (0.85, 1.18)
"""Random hand-off runs at two rates whose expected speeds are these multiples of the tuned policy's."""
NOT_BRACKETED = "neither rate of random hand-off is near that speed, so nothing is said of chance"


def random_rates(search: Search, tuned: Tuned) -> tuple[float, float]:
    """Rates of random hand-off that should bracket the tuned policy's speed: (slower, faster)."""
    speeds = search.random_curve()[:, 0]
    wanted = search.point(tuned.policy, tuned.quantile)[0] * tuned.faster
    return tuple(float(1 - np.interp(wanted * factor, speeds, GRID)) for factor in BRACKET)


def against_random(measured: dict) -> AgainstRandom:
    """The tuned policy's loss minus that of random hand-off at the same measured speed, interpolated per prompt."""
    n = len(measured["tuned"]["loss"])

    def difference(rows) -> float:
        return float(measured["tuned"]["loss"][rows].mean() - random_loss(measured, rows))

    every = np.arange(n)
    return AgainstRandom(
        random_loss_at_same_speed=random_loss(measured, every),
        difference=difference(every),
        interval=live.bootstrap(difference, n),
        confidence=0.95,
        bracketed=bool(0.0 <= mixture(measured, every) <= 1.0),
    )


def mixture(measured: dict, rows) -> float:
    """Share of the faster random rate in the mixture of the two that is as fast as the tuned policy.

    Infinite where both rates are equally fast and the policy is not.
    """
    slow, fast, tuned = (live.speedup(measured, key, rows) for key in ("random_low", "random_high", "tuned"))
    # Seconds per token, not speedups, are what a mixture of prompts averages.
    missing, span = 1 / tuned - 1 / slow, 1 / fast - 1 / slow
    return missing / span if span else math.inf if missing else 0.0


def random_loss(measured: dict, rows) -> float:
    """Loss of the mixture of the two random rates that is as fast as the tuned policy."""
    share = mixture(measured, rows)
    share = share if math.isfinite(share) else 0.0
    low, high = (measured[key]["loss"][rows] for key in ("random_low", "random_high"))
    return float(((1 - share) * low + share * high).mean())


def beside_random(found: AgainstRandom) -> str:
    """The comparison in words."""
    if not found.bracketed:
        return NOT_BRACKETED
    low, high = found.interval
    better = "less" if high < 0 else "more" if low > 0 else "not clearly less or more"
    return (
        f"random hand-off at the same speed loses {found.random_loss_at_same_speed:.3f}, so it loses {better} than "
        f"chance (difference {found.difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f})"
    )


def against_rival(measured: dict, key: str, label: str) -> AgainstRival:
    """The tuned decoder's speed over that of ``key``, which a reader calls ``label``."""
    ratio = lambda rows: live.speedup(measured, "tuned", rows) / live.speedup(measured, key, rows)  # noqa: E731
    return AgainstRival(label, ratio(slice(None)), live.speed_interval(measured, ratio), 0.95)


def beside_rival(found: AgainstRival, rival: str) -> str:
    """The comparison in words, with ``rival`` for the other decoder."""
    low, high = found.interval
    better = "faster" if low > 1 else "slower" if high < 1 else "not clearly faster or slower"
    return f"it is {better} than {rival} (ratio {found.ratio:.3f}, 95 % interval {low:.3f} to {high:.3f})"
