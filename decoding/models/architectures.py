"""Architectures for which the cache is tested to be exact, by ``model_type``, and properties of their configs.

Positions, masks and biases come from transformers' own model code, which asks the cache for them. So a new architecture
is one line here and one in the tests.
"""

from __future__ import annotations

import sys

from decoding.kv_cache.attention import EAGER, GROUPED, SDPA

ATTENTION = {
    "bloom": EAGER,  # adds ALiBi and the mask to its scores itself
    "falcon": SDPA,  # its own attention; its eager one adds ALiBi twice
    "gemma2": EAGER,  # caps its attention scores
    "cohere": GROUPED,
    "cohere2": GROUPED,
    "gemma": GROUPED,
    "gemma3_text": GROUPED,
    "glm4": GROUPED,
    "gpt2": GROUPED,
    "gpt_neox": GROUPED,
    "granite": GROUPED,
    "llama": GROUPED,
    "mistral": GROUPED,
    "mixtral": GROUPED,
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": GROUPED,
    "opt": GROUPED,
    "phi": GROUPED,
    "phi3": GROUPED,
    "qwen2": GROUPED,
    "qwen2_moe": GROUPED,
    "qwen3": GROUPED,
    "qwen3_moe": GROUPED,
    "smollm3": GROUPED,
    "stablelm": GROUPED,
    "starcoder2": GROUPED,
}
"""The attention function that is exact for each architecture."""
STATEFUL = ("conv", "hybrid", "linear", "mamba", "recurrent")
"""Prefixes of transformers' layer types that keep a state instead of keys and values."""


def attention(config) -> str:
    """The attention function for a model of this config; ValueError, with a reason, if it would not be exact."""
    kind = config.model_type
    if kind not in ATTENTION:
        raise ValueError(
            f"architecture {kind!r} is not supported: {_reason(config)}; the exact ones are {', '.join(ATTENTION)}"
        )
    return ATTENTION[kind]


def _reason(config) -> str:
    if getattr(config, "is_encoder_decoder", False):
        return "an encoder-decoder does not continue its prompt"
    states = [layer for layer in getattr(config, "layer_types", None) or () if layer.startswith(STATEFUL)]
    if states or any(hasattr(config, name) for name in ("state_size", "mamba_d_state")):
        return "it keeps a state that cannot be rolled back to an earlier token"
    return "it has not been tested"


def counts_slots(config) -> bool:
    """Whether distances are counted in cache slots (ALiBi), so that two tokens cannot share a position."""
    return config.model_type == "bloom" or bool(getattr(config, "alibi", False))


def context(config) -> int:
    """Number of positions within which a row's text does not depend on the other rows of its batch."""
    rope = getattr(config, "rope_parameters", None) or {}
    # Longrope switches the frequencies of all rows, cached tokens included, once one row is longer than this.
    if rope.get("rope_type") == "longrope":
        return rope["original_max_position_embeddings"]
    return getattr(config, "max_position_embeddings", sys.maxsize)  # ALiBi has no limit


def head_width(config) -> int:
    """Width of one attention head."""
    width = getattr(config, "head_dim", None)
    return config.hidden_size // config.num_attention_heads if width is None else width
