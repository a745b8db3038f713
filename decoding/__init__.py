"""Decoders in which two or more language models of one tokenizer share the writing of a text."""

from importlib import import_module

_HOME = {
    "LM": "models.lm",
    "Autoregressive": "decoders.autoregressive",
    "Backoff": "decoders.backoff",
    "MTAD": "decoders.mtad",
    "MTJD": "decoders.mtjd",
    "PromptLookup": "drafting.prompt_lookup",
    "Result": "generation",
    "Sampling": "state.sampling",
    "SpecInfer": "decoders.specinfer",
    "Speculative": "decoders.speculative",
    "Step": "step",
    "default_pair": "models.defaults",
    "generate": "generation",
    "generate_many": "continuous_batching",
}


def __getattr__(name: str):
    """Import a public name when it is first asked for: torch takes seconds, and --help should not."""
    if name not in _HOME:
        from decoding.acceptance.rules import RULES

        if name == "__all__":
            return [*_HOME, *RULES]
        if name not in RULES:
            raise AttributeError(f"module 'decoding' has no attribute {name!r}")
        return RULES[name].load()
    return getattr(import_module(f"decoding.{_HOME[name]}"), name)
