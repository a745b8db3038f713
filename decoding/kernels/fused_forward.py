"""The forward of a Llama in fewer and larger operations than transformers'.

One token of a small model is so little work that much of its time is spent on launching operations, on a GPU too, where
an almost empty kernel takes as long as reading megabytes of weights. Queries, keys and values are one product, as are
the two halves of the feed-forward layer. A rotation is one complex multiplication: the weight rows of queries and keys
are reordered into pairs, which leaves their inner products unchanged. The mask is made once, not once a layer, and not
at all for one token of one text. A layer launches 51 operations instead of 65, views counted, and calls no module but
its linear layers. What it is worth on a CPU: ``experiments/lean_forward.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoding.kernels.packed_products import Packed
from decoding.kv_cache.attention import row_mask
from decoding.models.architectures import head_width

ROPES = ("default", "linear", "llama3", "yarn")  # kinds of rotary embedding whose frequencies do not depend on the text


@dataclass(slots=True)
class Layer:
    norm: Tensor
    qkv: Packed
    out: nn.Module
    inner_norm: Tensor
    gate_up: Packed
    down: nn.Module


class FusedForward:
    """The forward of a transformers Llama over the slots of a ``Session``.

    Weights are reordered once; ``stale`` says whether the model's have changed since.
    """

    def __init__(self, model):
        config, body = model.config, model.model
        self.width = head_width(config)
        self.heads, self.groups, self.eps = config.num_attention_heads, config.num_key_value_heads, config.rms_norm_eps
        self.embedding, self.norm, self.head = body.embed_tokens.weight, body.norm.weight, model.lm_head
        self.layers = [self._layer(layer) for layer in body.layers]
        self.model, self.versions = model, versions(model)
        self.turns = self._turns(body.rotary_emb, config.max_position_embeddings)

    @staticmethod
    def fits(model) -> bool:
        """Whether this equals the forward of ``model``: a dense Llama on one device with fixed rotary frequencies."""
        config = model.config
        rope = getattr(config, "rope_parameters", None) or {}
        return (
            type(model).__name__ == "LlamaForCausalLM"
            and config.hidden_act == "silu"
            and rope.get("rope_type", "default") in ROPES
            and len({p.device for p in model.parameters()}) == 1
            and all(p.device.type in ("cpu", "cuda") and type(p) is nn.Parameter for p in model.parameters())
            and all(isinstance(m, nn.Linear) for name, m in model.named_modules() if name.endswith(("_proj", "_head")))
        )

    @property
    def stale(self) -> bool:
        return self.versions != versions(self.model)

    def __call__(self, cache, ids: Tensor, logits_to_keep: int, hidden: bool) -> tuple[Tensor, Tensor | None]:
        """Logits [r, logits_to_keep, vocab] of ``ids`` [r, q], stored in ``cache`` as its plan says; with ``hidden``
        also the last hidden states [r, logits_to_keep, width]."""
        x = F.embedding(ids, self.embedding)
        r, q, _ = x.shape
        turn = self.turns[cache.plan.positions.queries][:, :, None]
        mask = self._mask(cache.plan, x)
        for layer, store in zip(self.layers, cache.layers, strict=True):
            heads = layer.qkv(self._normed(x, layer.norm)).view(r, q, -1, self.width)
            seen = self._attention(heads, turn, mask, store)
            x = x + layer.out(seen)
            gate, up = layer.gate_up(self._normed(x, layer.inner_norm)).chunk(2, -1)
            x = x + layer.down(F.silu(gate).mul_(up))
        x = self._normed(x[:, -logits_to_keep:], self.norm)
        return self.head(x), x if hidden else None

    def _attention(self, heads: Tensor, turn: Tensor, mask: Tensor | None, store) -> Tensor:
        """[r, q, heads * width] attention of ``heads`` [r, q, heads + 2 * groups, width] over a cache layer."""
        r, q, _, width = heads.shape
        share = self.heads // self.groups
        turned = heads[:, :, : self.heads + self.groups].float().unflatten(-1, (-1, 2))
        turned = torch.view_as_real(torch.view_as_complex(turned) * turn).flatten(-2).to(heads.dtype)
        query, key = turned.split((self.heads, self.groups), 2)
        keys, values = store.update(key.transpose(1, 2), heads[:, :, self.heads + self.groups :].transpose(1, 2))
        # The query heads of a group become queries of one head, so keys and values are not repeated.
        query = query.view(r, q, self.groups, share, width).permute(0, 2, 3, 1, 4).reshape(r, self.groups, -1, width)
        seen = F.scaled_dot_product_attention(query, keys, values, mask)
        return seen.view(r, self.groups, share, q, width).permute(0, 3, 1, 2, 4).reshape(r, q, -1)

    def _mask(self, plan, like: Tensor) -> Tensor | None:
        """Additive mask [r, 1, share * q, reach]; None where everything is visible: one token of a single row."""
        r, q = plan.positions.queries.shape
        if r == q == 1 and plan.rows is None and plan.positions.hidden is None and not plan.rounded:
            return None
        causal = lambda row, head, query, key: key <= query  # noqa: E731
        mask = row_mask(plan.positions, additive=True, kv_length=plan.reach, mask_function=causal, dtype=like.dtype)
        return mask.repeat(1, 1, self.heads // self.groups, 1) if q > 1 else mask

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.eps)

    def _layer(self, layer) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = [self._paired(attention.q_proj), self._paired(attention.k_proj), _rows(attention.v_proj)]
        gate_up = _joined([_rows(mlp.gate_proj), _rows(mlp.up_proj)])
        if not gate_up.packed:  # share memory with the model's two halves
            mlp.gate_proj.weight.data, mlp.up_proj.weight.data = gate_up.weight.chunk(2)
        return Layer(
            norm=layer.input_layernorm.weight,
            qkv=_joined(qkv),
            out=attention.o_proj,
            inner_norm=layer.post_attention_layernorm.weight,
            gate_up=gate_up,
            down=mlp.down_proj,
        )

    def _paired(self, linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with rows i and i + width / 2 of a head adjacent: they are rotated together."""
        pair = lambda rows: rows.unflatten(0, (-1, 2, self.width // 2)).transpose(1, 2).flatten(0, 2)  # noqa: E731
        weight, bias = _rows(linear)
        return pair(weight), None if bias is None else pair(bias)

    def _turns(self, rotary, positions: int) -> Tensor:
        """[positions, width / 2] complex factors that rotate pairs of values at each position."""
        angles = torch.arange(positions, device=self.embedding.device)[:, None] * rotary.inv_freq.float()
        return torch.polar(torch.full_like(angles, rotary.attention_scaling), angles)


def _rows(linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
    return linear.weight.detach(), None if linear.bias is None else linear.bias.detach()


def _joined(parts: list[tuple[Tensor, Tensor | None]]) -> Packed:
    """One product for several linear layers of the same input."""
    weights, biases = zip(*parts, strict=True)
    return Packed(torch.cat(weights), None if biases[0] is None else torch.cat(biases))


def versions(model) -> list[tuple[int, int]]:
    """Address of each weight of a model, and how often it was changed in place: equal where no weight has changed."""
    # A tensor made in inference mode counts no changes.
    return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters()]
