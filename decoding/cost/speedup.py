"""Predicts the speedup of drafting from the costs of a pair, and warns of a draft length that loses."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from decoding.cost.cache import stored
from decoding.cost.costs import CONTEXT, ModelCosts
from decoding.models.lm import LM

LENGTHS = range(1, 17)
ENOUGH = 64  # rounds after which the mean of accepted tokens is known well enough to warn


def speedup(costs: ModelCosts, length: int, profile: Sequence[float], context: int = CONTEXT) -> float:
    """Tokens per second of drafting ``length`` tokens, over those of the target alone, after ``context`` tokens.

    ``profile``: by place in the draft, how often its token is accepted if all before it are; the last entry stands for
    all places that follow. A round writes the accepted tokens and one more; it takes ``length`` forwards of the draft,
    one of the target (Leviathan et al. 2211.17192, theorem 3.8), and the work between them.
    """
    tokens = accepted = 1.0
    for place in range(length):
        accepted *= profile[min(place, len(profile) - 1)]
        tokens += accepted
    draft, target = costs.forward(0, 1, context) + costs.draft_overhead, costs.forward(-1, length + 1, context)
    return tokens * token_seconds(costs, context) / (length * draft + target + costs.round_overhead)


def token_seconds(costs: ModelCosts, context: int = CONTEXT) -> float:
    """Seconds of a token that the target writes alone after ``context`` others."""
    return costs.forward(-1, 1, context) + costs.token_overhead


def best_length(costs: ModelCosts, profile: Sequence[float]) -> tuple[int, float]:
    """(draft length, speedup) of the fastest one; it may still lose."""
    return max(((n, speedup(costs, n, profile)) for n in LENGTHS), key=lambda pair: pair[1])


def acceptance_from_mean(accepted: float, length: int) -> float:
    """The rate, the same at every place, at which ``accepted`` of ``length`` drafted tokens are accepted on average."""
    from scipy.optimize import brentq

    return brentq(lambda rate: sum(rate**place for place in range(1, length + 1)) - accepted, 0.0, 1.0)


@dataclass(slots=True)
class Tally:
    """Rounds of one pair at one draft length."""

    rounds: int = 0
    accepted: int = 0


class PairTally(dict[int, Tally]):
    """Rounds of one pair so far, by draft length."""

    warned: bool = False


_pairs: WeakKeyDictionary[LM, WeakKeyDictionary[LM, PairTally]] = WeakKeyDictionary()


def warn_if_slower(decoder, rows: int, counts: dict) -> None:
    """Count what a generation of ``decoder`` accepted; warn once of a pair whose draft length makes it slower.

    Counts only one row with a ``draft_length``: the cost of nothing else is known. Times nothing: a pair that
    ``decoding.measure_cost`` has not measured is never warned of.
    """
    length = getattr(decoder, "draft_length", None)
    if rows > 1 or length is None:
        return
    draft, target = decoder.models
    pair = _pairs.setdefault(target, WeakKeyDictionary()).setdefault(draft, PairTally())
    tally = pair.setdefault(length, Tally())
    before = tally.rounds
    tally.rounds += counts["calls"][1]
    # The end of the text may have cut the last draft: it counts as accepted, in favour of drafting.
    tally.accepted += min(counts["accepted"] + length, counts["drafted"])
    if before < ENOUGH <= tally.rounds and not pair.warned:
        pair.warned = _warn(draft, target, length, tally.accepted / tally.rounds)


def _warn(draft: LM, target: LM, length: int, accepted: float) -> bool:
    """Warn if the stored costs say that drafting loses when ``accepted`` tokens of a draft are; whether it did."""
    costs = stored([draft, target])
    if costs is None:
        return False
    profile = [acceptance_from_mean(accepted, length)]
    speed, (best, most) = speedup(costs, length, profile), best_length(costs, profile)
    if speed >= 1:
        return False
    better = f"drafting {best} would be {most:.2f}x" if most > 1 else "no draft length wins, so it is best alone"
    logging.getLogger(__name__).warning(
        "drafting %d tokens with %s is %.2fx of %s alone on this machine, where %.1f of them are accepted; %s",
        *(length, draft.name, speed, target.name, accepted, better),
    )
    return True
