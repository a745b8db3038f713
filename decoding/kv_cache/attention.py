"""Attention for rows that stand at positions of their own: the masks, and grouped queries without copies of keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

GROUPED, SDPA, EAGER = "grouped_sdpa", "sdpa", "eager"


@dataclass(slots=True)
class AttentionPositions:
    """Where q queries and k keys of r rows stand; a key that is ``hidden`` is not seen, whatever its place."""

    queries: Tensor
    """[r, q] positions"""
    keys: Tensor | None = None
    """[r, k] positions; None where each is its slot"""
    hidden: Tensor | None = None
    """[r, q, k]"""


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
    """``mask`` of transformers, which counts the queries of all rows from one offset, or ours by position.

    A model asks for one mask per layer type and forward, each with its own function of two indices (causal, sliding
    window); a Session's cache answers with places where others answer with an offset.
    """

    def build(*args, q_offset=0, **options):
        if not isinstance(q_offset, AttentionPositions):
            return mask(*args, q_offset=q_offset, **options)
        # A mask that is no addend, sdpa makes one of on CUDA: three kernels more in every layer.
        return row_mask(q_offset, additive=mask is eager_mask or not q_offset.queries.is_cpu, **options)

    return build


def row_mask(
    places: AttentionPositions, additive: bool, kv_length: int, mask_function, dtype: torch.dtype, **options
) -> Tensor:
    """[r, 1, q, kv_length] what queries see of slots 0, 1 ...: True, or 0 when ``additive``."""
    queries, keys, hidden = places.queries[:, None, :, None], places.keys, places.hidden
    batch = torch.arange(len(queries), device=queries.device)[:, None, None, None]
    keys = torch.arange(kv_length, device=queries.device) if keys is None else keys[:, None, None]
    seen = mask_function(batch, torch.zeros_like(batch), queries, keys)
    seen = seen if hidden is None else seen & ~hidden[:, None]
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
