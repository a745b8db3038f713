"""Tiny random models that every test file may use."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from decoding import LM

SHAPE = {
    "vocab_size": 37,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.35,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
}


def tiny(kind: str = "llama", layers: int = 2, seed: int = 0, **changes) -> LM:
    """A random model small enough for exact comparisons; wide initial weights keep its distribution peaked."""
    config, model, extra = KINDS[kind]
    torch.manual_seed(seed)
    return LM(model(config(**SHAPE | extra | changes, num_hidden_layers=layers)))


@pytest.fixture
def prompts():
    """A ragged, left-padded batch of four: (input_ids, attention_mask)."""
    lengths, width = [9, 4, 1, 7], 9
    rows = torch.randint(3, 37, (4, width), generator=torch.Generator().manual_seed(1))
    mask = torch.stack([torch.arange(width) >= width - n for n in lengths]).long()
    return rows * mask, mask
