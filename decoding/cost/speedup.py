"""Go or no-go: what drafting is worth by what forwards cost here, and a warning when it loses."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from decoding.cost.cache import stored
from decoding.cost.timing import CONTEXT, PairCosts
from decoding.decoders.speculative import Speculative
from decoding.models.lm import LM

LENGTHS = range(1, 17)
ENOUGH = 64
"""Rounds after which the share of kept tokens is known well enough to warn."""


def speedup(costs: PairCosts, length: int, profile: Sequence[float], context: int = CONTEXT) -> float:
    """Tokens per second of drafting ``length`` tokens, in units of the large model's alone.

    ``profile``: of each place of a draft, how often its token is kept if all before it are; the last stands for all
    that follow. A round writes what is kept and one token more, for ``length`` forwards of the draft and one of the
    target (Leviathan et al. 2211.17192, theorem 3.8), and for what is done between them. ``context`` tokens are cached.
    """
    tokens = kept = 1.0
    for place in range(length):
        kept *= profile[min(place, len(profile) - 1)]
        tokens += kept
    took = length * (costs.forward(0, 1, context) + costs.drafted) + costs.forward(1, length + 1, context) + costs.round
    return tokens * alone(costs, context) / took


def alone(costs: PairCosts, context: int = CONTEXT) -> float:
    """Seconds of a token that the large model writes alone after ``context`` others."""
    return costs.forward(1, 1, context) + costs.alone


def best_length(costs: PairCosts, profile: Sequence[float]) -> tuple[int, float]:
    """(draft length, speedup) of the fastest; it may still lose."""
    return max(((n, speedup(costs, n, profile)) for n in LENGTHS), key=lambda pair: pair[1])


def acceptance_from_mean(kept: float, length: int) -> float:
    """The chance at every place that its token is kept, if of ``length`` on average ``kept`` are."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        few = sum(middle**place for place in range(1, length + 1)) < kept
        low, high = (middle, high) if few else (low, middle)
    return low


@dataclass(slots=True)
class Tally:
    rounds: int = 0
    accepted: int = 0


class Pair(dict[int, Tally]):
    """What a draft and a target did so far, by draft length."""

    done: bool = False
    """whether it was warned of"""


_pairs: WeakKeyDictionary[LM, WeakKeyDictionary[LM, Pair]] = WeakKeyDictionary()


def warn_if_slower(decoder, rows: int, counts: dict) -> None:
    """Count what a generation of ``decoder`` kept; warn once of a pair whose draft length must lose.

    Only drafts by a model that no policy ends, and one row: only of these the cost is known. Nothing is timed
    here; pairs that ``decoding.measure_cost`` has not seen are never warned of.
    """
    if rows > 1 or not isinstance(decoder, Speculative) or len(decoder.models) < 2 or decoder.stop is not None:
        return
    draft, target = decoder.models
    pair = _pairs.setdefault(target, WeakKeyDictionary()).setdefault(draft, Pair())
    tally = pair.setdefault(decoder.length, Tally())
    before = tally.rounds
    tally.rounds += counts["calls"][1]
    # An end may have cut the last draft: in favour of drafting it counts as kept.
    tally.accepted += min(counts["accepted"] + decoder.length, counts["drafted"])
    if before < ENOUGH <= tally.rounds and not pair.done:
        pair.done = _loses(draft, target, decoder.length, tally.accepted / tally.rounds)


def _loses(draft: LM, target: LM, length: int, kept: float) -> bool:
    """Whether it does, by what is stored of their costs, if ``kept`` tokens of a draft are; says so."""
    costs = stored([draft, target])
    if costs is None:
        return False
    profile = [acceptance_from_mean(kept, length)]
    speed, (best, most) = speedup(costs, length, profile), best_length(costs, profile)
    if speed >= 1:
        return False
    better = f"drafting {best} would be {most:.2f}x" if most > 1 else "no draft length wins, so it is best alone"
    logging.getLogger(__name__).warning(
        "drafting %d tokens with %s is %.2fx of %s alone on this machine, where %.1f of them are kept; %s",
        *(length, draft.name, speed, target.name, kept, better),
    )
    return True
