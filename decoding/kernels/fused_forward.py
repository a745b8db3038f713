"""The forward of a Llama and its relatives in fewer and larger operations than transformers'.

One token of a small model is so little work that much of its time is spent on launching operations, on a GPU too, where
an almost empty kernel takes as long as reading megabytes of weights. Queries, keys and values are one product, as are
the two halves of the feed-forward layer. A rotation is one complex multiplication: the weight rows of queries and keys
are reordered into pairs, which leaves their inner products unchanged. A mask is made once for each width of window, not
once a layer, and not at all for one token of one text that a window does not cut. How families differ is a table:
``decoding.kernels.families``. What it is worth on a CPU: ``experiments/lean_forward.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoding.kernels.families import ACTIVATIONS, FAMILIES, Family
from decoding.kernels.packed_products import Packed
from decoding.kv_cache.attention import row_mask
from decoding.models.architectures import head_width


@dataclass(slots=True)
class Layer:
    """One layer; a norm is None where the family has none."""

    qkv: Packed
    out: nn.Module
    gate_up: Packed
    down: nn.Module
    norms: list[Tensor | None]  # before and after attention, before and after the feed-forward layer
    head_norms: tuple[Tensor, Tensor] | None  # of queries and keys
    window: int | None
    rope: str | None  # None where positions are not rotated


class FusedForward:
    """The forward of a transformers model of ``FAMILIES`` over the slots of a ``Session``.

    Weights are reordered once; ``stale`` says whether the model's have changed since.
    """

    def __init__(self, model):
        config, body, row = model.config, model.model, FAMILIES[type(model).__name__]
        number = lambda field, default=1.0: default if field is None else getattr(config, field)  # noqa: E731
        self.width, self.scale, self.activation = (
            head_width(config),
            row.scale(config),
            ACTIVATIONS[number(row.activation)],
        )
        self.heads, self.groups, self.eps = config.num_attention_heads, config.num_key_value_heads, config.rms_norm_eps
        self.embedding, self.head = body.embed_tokens, model.lm_head
        self.embedding_scale, self.residual, self.logit_divisor = map(number, (row.embedding, row.residual, row.logits))
        self.score_cap, self.logit_cap = number(row.score_cap, None), number(row.logit_cap, None)
        self.ropes = _ropes(body.rotary_emb)
        self.order = self._order(len(next(iter(self.ropes.values()))[0])).to(body.norm.weight.device)
        self.norm = _norm(body.norm, row)
        self.layers = [self._layer(layer, row, i) for i, layer in enumerate(body.layers)]
        self.model, self.versions = model, versions(model)

    @property
    def stale(self) -> bool:
        return self.versions != versions(self.model)

    def __call__(self, cache, ids: Tensor, logits_to_keep: int, hidden: bool) -> tuple[Tensor, Tensor | None]:
        """Logits [r, logits_to_keep, vocab] of ``ids`` [r, q], stored in ``cache`` as its plan says; with ``hidden``
        also the last hidden states [r, logits_to_keep, width]."""
        x = self.embedding(ids)
        x = x if self.embedding_scale == 1 else x * self.embedding_scale
        plan, (r, q, _) = cache.plan, x.shape
        turns = {None: None} | {name: self._turn(plan.positions.queries, *rope) for name, rope in self.ropes.items()}
        masks = {window: self._mask(plan, window, x.dtype) for window in {layer.window for layer in self.layers}}
        for layer, store in zip(self.layers, cache.layers, strict=True):
            before, after, inner_before, inner_after = layer.norms
            heads = layer.qkv(self._normed(x, before)).view(r, q, -1, self.width)
            seen = self._attention(heads, layer, turns[layer.rope], masks[layer.window], store)
            x = torch.add(x, self._normed(layer.out(seen), after), alpha=self.residual)
            gate, up = layer.gate_up(self._normed(x, inner_before)).chunk(2, -1)
            x = torch.add(x, self._normed(layer.down(self.activation(gate).mul_(up)), inner_after), alpha=self.residual)
        x = self._normed(x[:, -logits_to_keep:], self.norm)
        return self._logits(x), x if hidden else None

    def _logits(self, x: Tensor) -> Tensor:
        logits = self.head(x)
        logits = logits if self.logit_divisor == 1 else logits / self.logit_divisor
        return logits if self.logit_cap is None else _capped(logits, self.logit_cap)

    def _attention(self, heads: Tensor, layer: Layer, turn: Tensor | None, mask: Tensor | None, store) -> Tensor:
        """[r, q, heads * width] attention of ``heads`` [r, q, heads + 2 * groups, width] over a cache layer."""
        r, q, _, width = heads.shape
        share = self.heads // self.groups
        if layer.head_norms is not None or turn is not None:
            rotated = heads[:, :, : self.heads + self.groups]
            if layer.head_norms is not None:
                parts = zip(rotated.split((self.heads, self.groups), 2), layer.head_norms, strict=True)
                rotated = torch.cat([self._normed_heads(part, weight) for part, weight in parts], 2)
            query, key = self._turned(rotated, turn).split((self.heads, self.groups), 2)
        else:
            query, key = heads[:, :, : self.heads], heads[:, :, self.heads : self.heads + self.groups]
        keys, values = store.update(key.transpose(1, 2), heads[:, :, self.heads + self.groups :].transpose(1, 2))
        # The query heads of a group become queries of one head, so keys and values are not repeated.
        query = query.reshape(r, q, self.groups, share, width).permute(0, 2, 3, 1, 4).reshape(r, self.groups, -1, width)
        seen = self._seen(query, keys, values, mask)
        return seen.view(r, self.groups, share, q, width).permute(0, 3, 1, 2, 4).reshape(r, q, -1)

    def _seen(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        if self.score_cap is None:
            return F.scaled_dot_product_attention(query, keys, values, mask, scale=self.scale)
        scores = _capped(query @ keys.transpose(2, 3) * self.scale, self.score_cap)
        scores = scores if mask is None else scores + mask
        return F.softmax(scores, -1, dtype=torch.float32).to(query.dtype) @ values

    def _turn(self, positions: Tensor, frequencies: Tensor, scaling: float) -> Tensor:
        """[r, q, 1, width / 2] complex factors that rotate pairs of values at ``positions`` [r, q]."""
        angles = positions[..., None, None] * frequencies
        turn = torch.polar(torch.full_like(angles, scaling), angles)
        rest = self.width // 2 - len(frequencies)  # of a partial rotation: factors of 1
        return F.pad(turn, (0, rest), value=1.0) if rest else turn

    def _turned(self, x: Tensor, turn: Tensor | None) -> Tensor:
        if turn is None:
            return x
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)

    def _mask(self, plan, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Additive mask [r, 1, share * q, reach]; None where one token of a single row sees everything."""
        positions, (r, q) = plan.positions, plan.positions.queries.shape
        within = window is None or plan.reach <= window
        if r == q == 1 and plan.rows is None and positions.hidden is None and not plan.rounded and within:
            return None

        def seen(row, head, query, key):
            return key <= query if window is None else (key <= query) & (key > query - window)

        mask = row_mask(positions, additive=True, kv_length=plan.reach, mask_function=seen, dtype=dtype)
        return mask.repeat(1, 1, self.heads // self.groups, 1) if q > 1 else mask

    def _normed(self, x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return x
        if weight.dtype == x.dtype:
            return F.rms_norm(x, weight.shape, weight, self.eps)
        return F.rms_norm(x.float(), weight.shape, weight, self.eps).to(x.dtype)

    def _normed_heads(self, x: Tensor, weight: Tensor) -> Tensor:
        """``x`` [r, q, n, width], normed over as many of its numbers as ``weight`` has: a head's, or all."""
        return self._normed(x.reshape(*x.shape[:2], -1, len(weight)), weight).view(x.shape)

    def _layer(self, layer, row: Family, index: int) -> Layer:
        attention, mlp, config = layer.self_attn, layer.mlp, layer.self_attn.config
        parts = [getattr(mlp, name) for name in row.gate_up]
        gate_up = _joined(parts)
        if not gate_up.packed:  # share memory with the model's own
            for part, weight in zip(parts, gate_up.weight.chunk(len(parts)), strict=True):
                part.weight.data = weight
        head_norms = (attention.q_norm, attention.k_norm) if row.head_norms else ()
        kind = getattr(attention, "layer_type", None)
        return Layer(
            qkv=_joined([getattr(attention, name) for name in row.qkv], self.order),
            out=attention.o_proj,
            gate_up=gate_up,
            down=mlp.down_proj,
            norms=[None if name is None else _norm(getattr(layer, name), row) for name in row.norms],
            head_norms=tuple(_norm(norm, row)[self.order[: len(norm.weight)]] for norm in head_norms) or None,
            window=row.window(config, index),
            rope=(kind if kind in self.ropes else "") if row.rotated(config, index) else None,
        )

    def _order(self, frequencies: int) -> Tensor:
        """Rows of queries, keys and values such that values of a head that are rotated together are adjacent."""
        first = torch.arange(self.width)
        pairs = first[: 2 * frequencies].view(2, -1).T.flatten()
        head, heads = torch.cat([pairs, first[2 * frequencies :]]), self.heads + self.groups
        turned = (torch.arange(heads)[:, None] * self.width + head).flatten()
        return torch.cat([turned, torch.arange(heads * self.width, (heads + self.groups) * self.width)])


def _ropes(rotary) -> dict[str, tuple[Tensor, float]]:
    """Frequencies and scaling of cosine and sine, by type of layer where they differ, else of ""."""
    # A longer text may have changed ``inv_freq`` (longrope), never the original.
    ending = "original_inv_freq"
    names = [name.removesuffix(ending) for name, _ in rotary.named_buffers() if name.endswith(ending)]
    return {
        name.removesuffix("_"): (getattr(rotary, name + ending).float(), getattr(rotary, name + "attention_scaling"))
        for name in names
    }


def _norm(norm: nn.Module, row: Family) -> Tensor:
    """The factors of a norm."""
    weight = norm.weight.detach()
    return weight if row.norm_offset == 0 else weight.float() + row.norm_offset


def _joined(parts: list[nn.Linear], order: Tensor | None = None) -> Packed:
    """One product for several linear layers of the same input, its rows in ``order``."""
    weight, biases = torch.cat([part.weight.detach() for part in parts]), [part.bias for part in parts]
    bias = None if biases[0] is None else torch.cat(biases).detach()
    return Packed(weight, bias) if order is None else Packed(weight[order], None if bias is None else bias[order])


def _capped(x: Tensor, most: float) -> Tensor:
    return torch.tanh(x / most) * most


def versions(model) -> list[tuple[int, int]]:
    """Address of each weight of a model, and how often it was changed in place: equal where no weight has changed.

    Weights that are quantised are buffers. Frequencies are no weights: texts may change them.
    """
    buffers = (buffer for name, buffer in model.named_buffers() if not name.endswith("inv_freq"))
    # A tensor made in inference mode counts no changes.
    return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in (*model.parameters(), *buffers)]
