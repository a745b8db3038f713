"""One tiny configuration for everything that makes an architecture read its cache differently."""

import torch
import transformers

from decoding import LM

SHAPE = {
    "vocab_size": 37,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.35,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WINDOW = 8
FALCON = {"ffn_hidden_size": 48, "num_kv_heads": 2}
SWITCHED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, **SWITCHED}
OPT = {"ffn_dim": 48, "init_std": 0.35, "dropout": 0.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
KINDS = {
    "llama": ("Llama", {}),
    "llama-scaled": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, **SWITCHED}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": WINDOW}),
    "gemma2": ("Gemma2", {"attn_logit_softcapping": 2.0, **GEMMA}),
    "gemma3": ("Gemma3Text", GEMMA),
    "gpt2": ("GPT2", {"n_inner": 48}),
    "opt": ("OPT", {"word_embed_proj_dim": 32, **OPT}),
    "opt-projected": ("OPT", {"word_embed_proj_dim": 16, "do_layer_norm_before": False, **OPT}),
    "gpt_neox": ("GPTNeoX", {}),
    "phi": ("Phi", {}),
    "phi3": ("Phi3", {"sliding_window": None}),
    "phi3-window": ("Phi3", {"sliding_window": WINDOW}),
    "olmo2": ("Olmo2", {}),
    "stablelm": ("StableLm", {}),
    "starcoder2": ("Starcoder2", {"sliding_window": WINDOW}),
    "bloom": ("Bloom", {}),
    "bloom-six-heads": ("Bloom", {"hidden_size": 48, "num_attention_heads": 6}),
    "mixtral-window": ("Mixtral", {"num_local_experts": 4, "sliding_window": WINDOW}),
    "qwen2_moe": ("Qwen2Moe", {"shared_expert_intermediate_size": 16, **EXPERTS}),
    "qwen3_moe": ("Qwen3Moe", {"head_dim": 8, **EXPERTS}),
    "gemma": ("Gemma", {"head_dim": 8}),
    "cohere": ("Cohere", {"logit_scale": 1.0}),
    "cohere2": ("Cohere2", {"logit_scale": 1.0, **SWITCHED}),
    "granite": ("Granite", {"attention_multiplier": 0.3, "logits_scaling": 0.5}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}),
    "olmo": ("Olmo", {"clip_qkv": 2.0}),
    "olmo3": ("Olmo3", SWITCHED),
    "glm4": ("Glm4", {"head_dim": 8}),
    "falcon": ("Falcon", {"alibi": False, **FALCON}),
    "falcon-new": ("Falcon", {"alibi": False, "new_decoder_architecture": True, **FALCON}),
    "falcon-alibi": ("Falcon", {"alibi": True, **FALCON}),
    "falcon-alibi-heads": ("Falcon", {"alibi": True, "multi_query": False, **FALCON, "num_kv_heads": None}),
}


def build(kind: str, **changes):
    """A transformers model of random weights, its configuration that of ``kind`` with ``changes``."""
    name, own = KINDS[kind]
    options = SHAPE | own | changes
    if "layer_types" in options:
        options["layer_types"] = options["layer_types"][-options["num_hidden_layers"] :]
    config = getattr(transformers, name + "Config")
    if not hasattr(config, "num_key_value_heads"):
        del options["num_key_value_heads"]
    return transformers.AutoModelForCausalLM.from_config(config(**options))


def tiny(kind: str = "llama", layers: int = 2, seed: int = 0, **changes) -> LM:
    """A random model small enough for exact comparisons; wide initial weights keep its distribution peaked."""
    torch.manual_seed(seed)
    return LM(build(kind, num_hidden_layers=layers, **changes))
