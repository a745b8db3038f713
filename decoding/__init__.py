"""Decoders in which two or more language models of one tokenizer share the writing of a text."""

from decoding.acceptance import Exact
from decoding.autoregressive import Autoregressive
from decoding.backoff import Backoff
from decoding.generate import Result, generate
from decoding.lm import LM
from decoding.pairs import default_pair
from decoding.sampling import Sampling
from decoding.speculative import Speculative
from decoding.step import Step

__all__ = [
    "LM",
    "Autoregressive",
    "Backoff",
    "Exact",
    "Result",
    "Sampling",
    "Speculative",
    "Step",
    "default_pair",
    "generate",
]
