"""The tuning methods: each is a file of this folder and a line of ``METHODS``."""

import pkgutil

METHODS = {
    "backoff": "train.methods.backoff:BackoffMethod",
    "speculative": "train.methods.speculative:SpeculativeMethod",
    "hybrid": "train.methods.hybrid:HybridMethod",
}
"""Class by the name that ``--method`` takes; as text, so that ``--help`` imports none of them."""


def tuning_method(name: str) -> type:
    """The class of the method ``name``, a ``train.methods.base.TuningMethod``."""
    return pkgutil.resolve_name(METHODS[name])
