"""Attention for rows that stand at positions of their own: the masks, and grouped queries without copies of keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

GROUPED, SDPA, EAGER = "grouped_sdpa", "sdpa", "eager"


def use_attention(model, name: str) -> None:
    """Set GROUPED, SDPA or EAGER on a transformers model; its own ``generate`` keeps working."""
    AttentionInterface.register(GROUPED, grouped_sdpa)
    for known, mask in ((GROUPED, sdpa_mask), (SDPA, sdpa_mask), (EAGER, eager_mask)):
        AttentionMaskInterface.register(known, _by_row(mask))
    if model.config._attn_implementation != name:
        model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise ValueError(f"{type(model).__name__} does not take {name} attention; load it with that attention")


def _by_row(mask):
    """``mask`` of transformers, which counts the queries of all rows from one offset, or ours for positions [r, q].

    A model asks for one mask per layer type and forward, each with its own function of two indices (causal, sliding
    window); a Session's cache answers with positions where others answer with an offset.
    """

    def build(*args, q_offset=0, **options):
        if not isinstance(q_offset, Tensor) or q_offset.dim() != 2:
            return mask(*args, q_offset=q_offset, **options)
        return row_mask(q_offset, additive=mask is eager_mask, **options)

    return build


def row_mask(positions: Tensor, additive: bool, kv_length: int, mask_function, dtype: torch.dtype, **options) -> Tensor:
    """[r, 1, q, kv_length] what queries at ``positions`` [r, q] see of slots 0, 1 ...: True, or 0 when ``additive``."""
    batch = torch.arange(len(positions), device=positions.device)[:, None, None, None]
    slots = torch.arange(kv_length, device=positions.device)
    seen = mask_function(batch, torch.zeros_like(batch), positions[:, None, :, None], slots)
    return (
        torch.where(seen, torch.zeros((), dtype=dtype, device=seen.device), torch.finfo(dtype).min)
        if additive
        else seen
    )


def grouped_sdpa(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Grouped-query attention without repeating keys: the query heads of a group become queries of one head.

    query [b, heads, q, d], key and value [b, groups, k, d]. transformers' own function copies keys and values
    ``heads / groups`` times whenever a mask is given, and ours always is. Without a mask of ours it takes over again,
    and it refuses what neither can do (softcap).
    """
    if attention_mask is None or kwargs.get("position_bias") is not None or kwargs.get("softcap") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    b, heads, q, d = query.shape
    groups = key.shape[1]
    folded = query.reshape(b, groups, heads // groups * q, d)
    mask = attention_mask.repeat(1, 1, heads // groups, 1) if q > 1 and heads != groups else attention_mask
    out = F.scaled_dot_product_attention(folded, key, value, mask, dropout_p=dropout, scale=scaling)
    return out.view(b, heads, q, -1).transpose(1, 2), None
