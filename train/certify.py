"""Certificates: a promise about the loss of a policy that holds with a stated probability.

Learn then test (Angelopoulos et al. 2110.01052) with fixed-sequence testing, as in Pareto testing (Laufer-Goldshtein
et al., ICLR 2023): candidates and their order are frozen before the certification prompts are seen, each is tested at
the full level, and the first that fails ends it. Picking the best threshold on the prompts one tuned on breaks its
promise almost half of the time; a certificate at most once in ten, and "cannot certify" is one of its answers.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.certification.betting import bets, betting, binomial, largest, share_bound

TAIL = 0.1  # share of the error probability that pays for the bound on losses above the cap; the mean has the rest
LIMIT = 16384  # ``needed`` looks no further than this many prompts
RUNS, POWER = 400, 0.8


@dataclass(frozen=True)
class Certificate:
    """With probability >= confidence over the certification prompts, both of these hold for the chosen candidate:

    the expected capped loss of a prompt under the chosen candidate is at most ``bound``, itself at most the budget; and
    at most a share ``above`` of all prompts has a loss above the cap. None chosen: both bounds are of the safest one.
    """

    chosen: int | None
    bound: float
    above: float
    pvalues: np.ndarray  # [tested], up to and including the first that fails
    uppers: np.ndarray
    """[tested] each candidate's own upper bound on its mean capped loss; valid one at a time, not together"""
    level: float  # what a p-value must not exceed
    tail_level: float  # the error probability of ``above``
    n: int


def certify(
    losses,
    budget: float = 0.02,
    confidence: float = 0.9,
    cap: float = 0.25,
    ids: Sequence[str] | None = None,
    seed: int = 0,
    frozen: int | None = None,
) -> Certificate:
    """The last candidate of losses [prompts, candidates], safest first, that passes the test of its mean capped loss.

    losses: in [-1, 1], one row per independent prompt; each counts as min(loss, cap). Booleans (failed or not) get the
    exact binomial test; numbers get betting, even when all are 0 and 1: a test that the data choose has no level.
    ids: names of the prompts. Betting looks at prompts one by one, so their order must not depend on the losses: with
    ids it is that of ``prompt_order(ids, seed)`` whatever the order of the rows, without it that of the rows.
    frozen: how many candidates there were, when those after one that failed have not been measured.
    confidence: of the mean and of ``above`` together; the mean's error is (1 - TAIL) of 1 - confidence, and that of
    ``above`` is TAIL of it, divided among the candidates, as the chosen one was picked from them (Bonferroni).
    ``bound`` is the budget, as a chosen candidate has passed nothing else; when all have passed, the error probability
    is still unspent and it is the largest of their own bounds (Hayter & Hsu 1994).
    Raises ValueError for a NaN, a loss out of range, a missing axis, or settings that promise nothing.
    """
    check_settings(budget, confidence, cap)
    losses = _checked(losses)
    if ids is not None:
        losses = losses[prompt_order(ids, seed, len(losses))]
    n, candidates = len(losses), losses.shape[1] if frozen is None else frozen
    if candidates < losses.shape[1]:
        raise ValueError(f"{candidates} candidates were frozen and {losses.shape[1]} have losses; freeze all of them")
    level, tail_level = (1 - TAIL) * (1 - confidence), TAIL * (1 - confidence) / candidates
    pvalues, uppers = [], []
    for column in losses.T:
        pvalue = pvalue_of(column, cap, level)
        pvalues.append(float(pvalue(budget)))
        uppers.append(largest(pvalue, level, cap))
        if pvalues[-1] > level:
            break
    passed = sum(p <= level for p in pvalues)
    chosen = passed - 1 if passed else None
    bound = uppers[0] if chosen is None else max(uppers) if passed == candidates else budget
    high = int((losses[:, max(0, passed - 1)] > cap).sum())
    above = share_bound(high, n, tail_level)
    return Certificate(chosen, bound, above, np.array(pvalues), np.array(uppers), level, tail_level, n)


def pvalue_of(losses: np.ndarray, cap: float, level: float):
    """The p-value of "the mean capped loss is more than m" as a function of m, for losses [n] of one candidate."""
    if losses.dtype == bool:
        # A failure costs the cap, so that a mean of m is a share m / cap of failures.
        return lambda m: binomial(int(losses.sum()), len(losses), m / cap)
    capped = np.minimum(losses, cap)
    stakes = bets(capped, cap, level)
    return lambda m: betting(capped, stakes, m)


def prompt_order(ids: Sequence[str], seed: int = 0, count: int | None = None) -> np.ndarray:
    """Indices [n] that sort prompts by a hash of seed and id: an order that does not depend on any loss."""
    if len(set(ids)) != len(ids) or (count is not None and len(ids) != count):
        raise ValueError(f"{len(ids)} ids, {len(set(ids))} of them different; there must be one per row of losses")
    keys = [hashlib.sha256(json.dumps([seed, name]).encode()).hexdigest() for name in ids]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=int)


def needed(budget: float = 0.02, confidence: float = 0.9, cap: float = 0.25, true_loss: float = 0.0) -> int | None:
    """Prompts with which a candidate of this true mean capped loss is certified with probability POWER.

    None when more than LIMIT. By simulation, seeded, of the losses of 0 or more that are hardest to bet on at that
    mean: all equal but for a few at the cap. Raises ValueError when true_loss is not below the budget: then no number
    of prompts is enough.
    """
    check_settings(budget, confidence, cap)
    if not -1 <= true_loss < budget:
        raise ValueError(f"a true loss of {true_loss:g} cannot be certified; it must be below the budget of {budget:g}")
    gap, level = cap - true_loss, (1 - TAIL) * (1 - confidence)
    variance = max(0.0, true_loss) * gap
    rare, usual = variance / (variance + gap**2), true_loss - variance / gap

    def enough(n: int) -> bool:
        losses = np.where(np.random.default_rng(0).random((RUNS, n)) < rare, cap, usual)
        return (betting(losses, bets(losses, cap, level), budget) <= level).mean() >= POWER

    high = 2
    while not enough(high):
        high *= 2
        if high > LIMIT:
            return None
    return _first(enough, high // 2, high)


def _first(enough, low: int, high: int) -> int:
    """The smallest n in (low, high] that is enough, to 1 %: the simulation is no finer."""
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def check_settings(budget: float, confidence: float, cap: float) -> None:
    """Raise ValueError, one sentence, unless 0 < budget < cap <= 1 and 0 < confidence < 1."""
    if not 0 < cap <= 1:
        raise ValueError(f"the loss cap is {cap:g}; it must be above 0 and at most 1")
    if not 0 < budget < cap:
        raise ValueError(f"the budget is {budget:g}; it must be above 0 and below the loss cap of {cap:g}")
    if not 0 < confidence < 1:
        raise ValueError(f"the confidence is {confidence:g}; it must be between 0 and 1")


def _checked(losses) -> np.ndarray:
    losses = np.asarray(losses)
    if losses.ndim != 2 or not losses.shape[1]:
        raise ValueError(f"losses have shape {list(losses.shape)}; it must be [prompts, candidates], safest first")
    if losses.dtype == bool:
        return losses
    losses = losses.astype(float)
    for i, j in np.argwhere(~(abs(losses) <= 1 + 1e-9)):
        raise ValueError(f"the loss of prompt {i} under candidate {j} is {losses[i, j]:g}; it must be in [-1, 1]")
    return losses
