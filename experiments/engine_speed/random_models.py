"""Pairs of published shapes with random weights: speed depends on the shapes, so no download is needed."""

from __future__ import annotations

import torch

from decoding import LM
from train.data.prompts import Prompt

LLAMA = {"vocab_size": 128_256, "num_key_value_heads": 8, "max_position_embeddings": 8192}
SHAPES: dict[str, tuple[dict, dict]] = {
    "llama-8b+1b": (
        LLAMA
        | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
        | {"tie_word_embeddings": True},
        LLAMA
        | {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32}
        | {"tie_word_embeddings": False},
    ),
    "tiny": (
        {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024},
        {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024},
    ),
}
"""(small, large) configurations of Llama: 3.1 8B with 3.2 1B, and a tiny pair to try the command."""


def random_pair(name: str, device: str, dtype: str) -> tuple[LM, LM]:
    """(small, large) without tokenizers, made on ``device``. They never end an answer."""
    return tuple(_random(shape, device, dtype, seed) for seed, shape in enumerate(SHAPES[name]))


def _random(shape: dict, device: str, dtype: str, seed: int) -> LM:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(seed)
    with torch.device(device):
        config = LlamaConfig(bos_token_id=None, eos_token_id=None, pad_token_id=None, **shape)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.generation_config.eos_token_id = None
    return LM(model, graphs=True)


def random_prompts(vocab: int, count: int, shortest: int = 32, longest: int = 128) -> list[Prompt]:
    """``count`` prompts of random tokens and lengths, always the same."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=draw).tolist()
    ids = [tuple(torch.randint(vocab, (n,), generator=draw).tolist()) for n in lengths]
    return [Prompt(f"random-{i}", "random", f"random-{i}", "", some, None) for i, some in enumerate(ids)]
