"""Warns where a policy decides in batches of another size than it was tuned for: there its speedup is another one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from weakref import WeakSet

FACTOR = 2
"""A batch of up to so many times the size, or down to this part of it, is near enough."""

_timeless: ContextVar[bool] = ContextVar("timeless", default=False)
_warned: WeakSet = WeakSet()


@contextmanager
def timeless() -> Iterator[None]:
    """Nothing is warned of here: texts are written for what they say, and their speed does not matter."""
    token = _timeless.set(True)
    try:
        yield
    finally:
        _timeless.reset(token)


def warn_of_batch_size(decoder, rows: int) -> None:
    """Warn once of each policy of ``decoder`` whose provenance names a batch size that is not near ``rows``."""
    decided = [*getattr(decoder, "policies", ()), getattr(decoder, "stop", None)]
    for policy in [*decided, getattr(getattr(decoder, "accept", None), "policy", None)]:
        tuned = (getattr(policy, "provenance", None) or {}).get("batch_size")
        if not isinstance(tuned, int) or (tuned <= rows * FACTOR and rows <= tuned * FACTOR):
            continue
        if not _timeless.get() and policy not in _warned:
            _warned.add(policy)
            logging.getLogger(__name__).warning(
                "the policy was tuned for %s and decides in batches of %d, where its speedup and its best threshold "
                "are others; tune it with --batch-size %d",
                *("single texts" if tuned == 1 else f"batches of {tuned}", rows, rows),
            )
