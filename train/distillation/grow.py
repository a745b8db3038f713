"""Grows a drafter into a larger one that computes the same function."""

import math
import re

from transformers import LlamaConfig, LlamaForCausalLM

TO_RESIDUAL = ("o_proj.weight", "down_proj.weight", "embed_tokens.weight", "lm_head.weight")
"""matrices that write to the residual stream, and the head, which is the tied embedding"""


def grow(drafter: LlamaForCausalLM, layers=None, width=None, heads=None, inner=None) -> LlamaForCausalLM:
    """``drafter`` in the given sizes (integers); None keeps its proportions.

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
    few, many = old.num_hidden_layers, config.num_hidden_layers
    # The old layers come evenly spread among the new ones, the first one first.
    place = lambda layer: str(int(layer[0]) * many // few)  # noqa: E731
    source = {re.sub(r"(?<=^model\.layers\.)\d+", place, name): weight for name, weight in drafter.state_dict().items()}
    # The mean square under a norm is now over more places, of which the new ones are 0.
    shrink = math.sqrt(old.hidden_size / config.hidden_size)
    for name, weight in large.state_dict().items():
        if name.endswith(TO_RESIDUAL):
            weight.zero_()
        if name in source:
            weight[tuple(slice(n) for n in source[name].shape)] = source[name]
        if "norm" in name:
            weight *= shrink
    return large


def _check(old: LlamaConfig, new: LlamaConfig) -> None:
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    least = {name: getattr(old, name) for name in sizes}
    less = [f"{name} {getattr(new, name)} (now {n})" for name, n in least.items() if getattr(new, name) < n]
    if less:
        raise ValueError(f"a drafter can only grow from --init, not shrink: {', '.join(less)}")
    if new.num_attention_heads * new.head_dim != new.hidden_size:
        raise ValueError(f"heads of --init are {new.head_dim} wide; --width must be --heads times {new.head_dim}")
