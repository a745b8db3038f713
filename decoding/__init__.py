"""Decoders in which two or more language models of one tokenizer share the writing of a text."""

from importlib import import_module

_HOME = {
    "LM": "lm",
    "Autoregressive": "autoregressive",
    "Backoff": "backoff",
    "Block": "acceptance",
    "Cascade": "acceptance",
    "Divergence": "acceptance",
    "Exact": "acceptance",
    "FixedRatio": "acceptance",
    "Joint": "acceptance",
    "Learned": "acceptance",
    "Lenient": "acceptance",
    "MTAD": "mtad",
    "MTJD": "mtjd",
    "PromptLookup": "prompt_lookup",
    "Result": "generation",
    "Rollback": "acceptance",
    "Sampling": "sampling",
    "SpecInfer": "specinfer",
    "Speculative": "speculative",
    "Step": "step",
    "Typical": "acceptance",
    "default_pair": "pairs",
    "generate": "generation",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    """Import a public name when it is first asked for: torch takes seconds, and --help should not."""
    if name not in _HOME:
        raise AttributeError(f"module 'decoding' has no attribute {name!r}")
    return getattr(import_module(f"decoding.{_HOME[name]}"), name)
