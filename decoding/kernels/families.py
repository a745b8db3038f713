"""Families whose forward is a Llama's with other settings: a row each says how it differs.

A row names modules of transformers' layers and fields of its configs, so that a checkpoint's own numbers are used. What
fits no row is run by transformers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from decoding.models.architectures import head_width

ROPES = ("default", "linear", "llama3", "yarn", "longrope")
"""Kinds of rotary embedding whose frequencies are fixed within the context of an ``LM``."""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def by_layer(config, layer: int) -> int | None:
    """The window of a layer whose config lists the types of its layers."""
    return config.sliding_window if config.layer_types[layer] == "sliding_attention" else None


@dataclass(frozen=True, slots=True)
class Family:
    """One row. The default of each field is what a Llama does."""

    norms: tuple[str | None, ...] = ("input_layernorm", None, "post_attention_layernorm", None)
    """norms before and after attention, before and after the feed-forward layer"""
    norm_offset: float = 0.0
    """added to the weights of all norms"""
    head_norms: bool = False
    """queries and keys are normed, each head or all heads at once, as the shape of ``q_norm`` says"""
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    activation: str = "hidden_act"
    """field of the config that names the activation, as have the fields below their numbers"""
    window: Callable[[object, int], int | None] = lambda config, layer: None
    rotated: Callable[[object, int], bool] = lambda config, layer: True
    """whether a layer rotates its queries and keys"""
    scale: Callable[[object], float] = lambda config: head_width(config) ** -0.5
    """of attention scores"""
    embedding: str | None = None
    """multiplies embeddings"""
    residual: str | None = None
    """multiplies what a layer adds"""
    logits: str | None = None
    """divides logits"""
    score_cap: str | None = None
    logit_cap: str | None = None


SANDWICH = "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
GEMMA = {"norms": SANDWICH, "norm_offset": 1.0, "activation": "hidden_activation", "window": by_layer}
GEMMA |= {"scale": lambda config: config.query_pre_attn_scalar**-0.5, "logit_cap": "final_logit_softcapping"}

FAMILIES = {
    "LlamaForCausalLM": Family(),
    "MistralForCausalLM": Family(window=lambda config, layer: config.sliding_window),
    "Qwen2ForCausalLM": Family(window=by_layer),
    "Qwen3ForCausalLM": Family(window=by_layer, head_norms=True),
    "Phi3ForCausalLM": Family(
        qkv=("qkv_proj",), gate_up=("gate_up_proj",), window=lambda config, layer: config.sliding_window
    ),
    "GemmaForCausalLM": Family(norm_offset=1.0),
    "Gemma2ForCausalLM": Family(**GEMMA, score_cap="attn_logit_softcapping"),
    "Gemma3ForCausalLM": Family(**GEMMA, head_norms=True),
    "SmolLM3ForCausalLM": Family(window=by_layer, rotated=lambda config, layer: bool(config.no_rope_layers[layer])),
    "Olmo2ForCausalLM": Family(
        norms=(None, "post_attention_layernorm", None, "post_feedforward_layernorm"), head_norms=True
    ),
    "GraniteForCausalLM": Family(
        scale=lambda config: config.attention_multiplier,
        embedding="embedding_multiplier",
        residual="residual_multiplier",
        logits="logits_scaling",
    ),
}
"""Rows by the class of transformers' model."""


def family(model) -> Family | None:
    """The row of a transformers model; None if there is none, or its numbers are beyond it.

    All weights must be whole tensors on one device: a CPU, or one of CUDA.
    """
    row, config = FAMILIES.get(type(model).__name__), model.config
    if row is None or not type(model).__module__.startswith("transformers."):
        return None
    kinds = {rope.get("rope_type", "default") for rope in _ropes(config)}
    tensors = [*model.parameters(), *model.buffers()]
    known = (
        kinds <= set(ROPES)
        and getattr(config, row.activation) in ACTIVATIONS
        and not getattr(config, "use_bidirectional_attention", None)
        and len({t.device for t in tensors}) == 1
        and all(t.device.type in ("cpu", "cuda") for t in tensors)
        and all(type(p) is nn.Parameter for p in model.parameters())
        and all(isinstance(m, nn.Linear) for name, m in model.named_modules() if name.endswith(("_proj", "_head")))
    )
    return row if known else None


def _ropes(config) -> list[dict]:
    """The rotary settings of a config, of each type of layers where they differ."""
    ropes = getattr(config, "rope_parameters", None) or {}
    return [r for r in ropes.values() if r] if all(isinstance(r, dict | None) for r in ropes.values()) else [ropes]
