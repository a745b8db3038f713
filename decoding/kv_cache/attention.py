"""Attention for rows at different positions: masks by row, and grouped queries without copies of keys."""

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
    """Positions of q queries and k keys of r rows; a ``hidden`` key is not seen, whatever its position."""

    queries: Tensor  # [r, q] positions
    keys: Tensor | None = None  # [r, k] positions; None where each equals its slot
    hidden: Tensor | None = None  # [r, q, k]


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
    """transformers' ``mask`` function, which counts the queries of all rows from one offset, or ours by position.

    A model requests one mask per layer type and forward, each with its own function of two indices (causal, sliding
    window). A Session's cache returns positions where other caches return an offset.
    """

    def build(*args, q_offset=0, **options):
        if not isinstance(q_offset, AttentionPositions):
            return mask(*args, q_offset=q_offset, **options)
        # On CUDA, SDPA converts boolean masks: three extra kernels a layer.
        return row_mask(q_offset, additive=mask is eager_mask or not q_offset.queries.is_cpu, **options)

    return build


def row_mask(
    positions: AttentionPositions, additive: bool, kv_length: int, mask_function, dtype: torch.dtype, **options
) -> Tensor:
    """[r, 1, q, kv_length] True, or 0 if ``additive``, where a query sees a slot; False, or the lowest number, else."""
    queries, keys, hidden = positions.queries[:, None, :, None], positions.keys, positions.hidden
    batch = torch.arange(len(queries), device=queries.device)[:, None, None, None]
    keys = torch.arange(kv_length, device=queries.device) if keys is None else keys[:, None, None]
    seen = mask_function(batch, torch.zeros_like(batch), queries, keys)
    seen = seen if hidden is None else seen & ~hidden[:, None]
    if not additive:
        return seen
    return torch.where(seen, torch.zeros((), dtype=dtype, device=seen.device), torch.finfo(dtype).min)


def grouped_sdpa(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Grouped-query attention without repeating keys: the query heads of a group become queries of one head.

    query [b, heads, q, d], key and value [b, groups, k, d]. transformers' own function copies keys and values
    ``heads / groups`` times whenever there is a mask, and a Session always has one. Without a mask, or with options
    that only transformers knows (position bias) or refuses (softcap), its function is called.
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
