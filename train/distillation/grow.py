"""Grows a drafter into a larger one that computes the same function."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

TO_RESIDUAL = ("o_proj.weight", "down_proj.weight")
"""matrices that write to the residual stream"""


def grow(
    drafter: LlamaForCausalLM,
    layers: int | None = None,
    width: int | None = None,
    heads: int | None = None,
    inner: int | None = None,
) -> LlamaForCausalLM:
    """``drafter`` in the given size; None keeps its proportions.

    Function-preserving growth (Net2Net, Chen et al. 1511.05641) for Llamas: new units write zeros to the residual
    stream and read it with random weights, so that they get a gradient at once. Logits differ only by the rounding of
    norms. Raises ValueError for a smaller size, and for one that changes the width of a head.
    """
    old = drafter.config
    config = LlamaConfig.from_dict(old.to_dict())
    config.hidden_size = old.hidden_size if width is None else width
    config.num_hidden_layers = old.num_hidden_layers if layers is None else layers
    config.num_attention_heads = config.hidden_size // old.head_dim if heads is None else heads
    config.num_key_value_heads = config.num_attention_heads * old.num_key_value_heads // old.num_attention_heads
    config.intermediate_size = old.intermediate_size * config.hidden_size // old.hidden_size if inner is None else inner
    _check(old, config)
    large = LlamaForCausalLM(config)
    places = _places(old.num_hidden_layers, config.num_hidden_layers)
    source = {_moved(name, places): weight for name, weight in drafter.state_dict().items()}
    # The mean square under a norm is now over more places, of which the new ones are 0.
    shrink = math.sqrt(old.hidden_size / config.hidden_size)
    for name, weight in large.state_dict().items():
        fill(name, weight, source.get(name))
        if "norm" in name:
            weight *= shrink
    return large


def _moved(name: str, places: list[int]) -> str:
    """The name in the larger model of the smaller model's weight ``name``."""
    if not name.startswith("model.layers."):
        return name
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    return f"model.layers.{places[int(layer)]}.{rest}"


@torch.no_grad()
def fill(name: str, weight: Tensor, old: Tensor | None) -> None:
    """Copy ``old``, if any, into the first places of ``weight``; the rest stays random, or becomes 0 (see ``grow``)."""
    if name.endswith(TO_RESIDUAL) or "embed_tokens" in name or "lm_head" in name:
        weight.zero_()
    if old is not None:
        weight[tuple(slice(n) for n in old.shape)] = old


def _places(few: int, many: int) -> list[int]:
    """Indices of the old layers among the new ones: evenly spread, the first one first."""
    return [i * many // few for i in range(few)]


def _check(old: LlamaConfig, new: LlamaConfig) -> None:
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    least = {name: getattr(old, name) for name in sizes}
    less = [f"{name} {getattr(new, name)} (now {n})" for name, n in least.items() if getattr(new, name) < n]
    if less:
        raise ValueError(f"a drafter can only grow from --init, not shrink: {', '.join(less)}")
    if new.num_attention_heads * new.head_dim != new.hidden_size:
        raise ValueError(f"heads of --init are {new.head_dim} wide; --width must be --heads times {new.head_dim}")
