"""Pairs of published shapes with random weights: speed depends on the shapes, so no download is needed."""

import torch

from decoding import LM
from decoding.cli.dtypes import DtypeOptions
from train.data.prompts import Prompt


def _llama(width: int, inner: int, layers: int, heads: int, **others) -> dict:
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    return sizes | {"num_attention_heads": heads, "tie_word_embeddings": False} | others


LLAMA = {"vocab_size": 128_256, "num_key_value_heads": 8, "max_position_embeddings": 8192}
QWEN3 = {"model_type": "qwen3", "vocab_size": 151_936, "num_key_value_heads": 8, "head_dim": 128}
QWEN3 |= {"max_position_embeddings": 8192}
TINY = {"vocab_size": 256, "num_key_value_heads": 2, "max_position_embeddings": 1024}
SHAPES: dict[str, tuple[dict, dict]] = {
    "llama-8b+1b": (
        _llama(2048, 8192, 16, 32, **LLAMA | {"tie_word_embeddings": True}),
        _llama(4096, 14_336, 32, 32, **LLAMA),
    ),
    "qwen3-8b+0.6b": (
        _llama(1024, 3072, 28, 16, **QWEN3 | {"tie_word_embeddings": True}),
        _llama(4096, 12_288, 36, 32, **QWEN3),
    ),
    "tiny": (_llama(32, 64, 1, 4, **TINY), _llama(64, 128, 3, 4, **TINY)),
}
"""(small, large) configurations: Llama 3.1 8B with 3.2 1B, Qwen3 8B with 0.6B, and a tiny pair to try a command."""


def random_pair(name: str, device: str, dtypes: DtypeOptions) -> tuple[LM, LM]:
    """(small, large) without tokenizers, made on ``device``. They never end an answer."""
    shapes = zip(("small", "large"), SHAPES[name], strict=True)
    return tuple(_random(shape, device, dtypes.of(role), seed) for seed, (role, shape) in enumerate(shapes))


def _random(shape: dict, device: str, dtype: str, seed: int) -> LM:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    with torch.device(device):
        options = {"model_type": "llama", "bos_token_id": None, "eos_token_id": None, "pad_token_id": None} | shape
        config = AutoConfig.for_model(**options)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.generation_config.eos_token_id = None
    return LM(model, graphs=True)


def random_prompts(vocab: int, count: int, shortest: int = 32, longest: int = 128) -> list[Prompt]:
    """``count`` prompts of random tokens and lengths, always the same."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=draw).tolist()
    ids = [tuple(torch.randint(vocab, (n,), generator=draw).tolist()) for n in lengths]
    return [Prompt(f"random-{i}", "random", f"random-{i}", "", some, None) for i, some in enumerate(ids)]
