"""The tuning methods: each is a file of this folder and a line of ``METHODS``."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.methods.base import TuningMethod

METHODS = {
    "backoff": "train.methods.backoff:BackoffMethod",
    "speculative": "train.methods.speculative:SpeculativeMethod",
    "hybrid": "train.methods.hybrid:HybridMethod",
}
"""Class by the name that ``--method`` takes; as text, so that ``--help`` imports none of them."""


def tuning_method(name: str) -> type[TuningMethod]:
    """The class of the method ``name``."""
    return pkgutil.resolve_name(METHODS[name])
