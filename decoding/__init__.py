"""Decoders in which two or more language models of one tokenizer share the writing of a text."""

from importlib import import_module

_HOME = {
    "LM": "models.lm",
    "Autoregressive": "decoders.autoregressive",
    "Backoff": "decoders.backoff",
    "Block": "acceptance.rules",
    "Cascade": "acceptance.rules",
    "Divergence": "acceptance.rules",
    "Exact": "acceptance.rules",
    "FixedRatio": "acceptance.rules",
    "Joint": "acceptance.rules",
    "Learned": "acceptance.rules",
    "Lenient": "acceptance.rules",
    "MTAD": "decoders.mtad",
    "MTJD": "decoders.mtjd",
    "PromptLookup": "drafting.prompt_lookup",
    "Result": "generation",
    "Rollback": "acceptance.rules",
    "Sampling": "state.sampling",
    "SpecInfer": "decoders.specinfer",
    "Speculative": "decoders.speculative",
    "Step": "step",
    "Typical": "acceptance.rules",
    "default_pair": "models.defaults",
    "generate": "generation",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    """Import a public name when it is first asked for: torch takes seconds, and --help should not."""
    if name not in _HOME:
        raise AttributeError(f"module 'decoding' has no attribute {name!r}")
    return getattr(import_module(f"decoding.{_HOME[name]}"), name)
