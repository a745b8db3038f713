"""Decision functions: one risk, one threshold, one answer per row."""

from importlib import import_module

_HOME = {
    "FEATURES": "features.table",
    "KINDS": "loading",
    "Logistic": "kinds.logistic",
    "MLP": "kinds.mlp",
    "Margins": "kinds.margins",
    "Momentum": "kinds.momentum",
    "Periodic": "kinds.controls",
    "Policy": "policy",
    "PolicyError": "storage.files",
    "Random": "kinds.controls",
    "Rule": "kinds.rule",
    "Survival": "kinds.survival",
    "feature_columns": "features.table",
    "history_for": "features.table",
    "load": "loading",
    "token_classes": "features.token_classes",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    """Import a public name when it is first asked for: torch takes seconds, and --help should not."""
    if name not in _HOME:
        raise AttributeError(f"module 'policies' has no attribute {name!r}")
    return getattr(import_module(f"policies.{_HOME[name]}"), name)
