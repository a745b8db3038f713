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
from importlib import import_module

import torch
from torch import Tensor, nn

from decoding.kernels.families import ACTIVATIONS, FAMILIES, Family
from decoding.kernels.integer_products import openmp
from decoding.kernels.joined import joined
from decoding.kernels.layer_operations import CompiledOperations, TorchOperations, capped, normed
from decoding.kernels.layer_program import TOKENS, LayerPrograms, programmable
from decoding.kernels.quantized import IntegerLinear
from decoding.models.architectures import head_width


@dataclass(slots=True)
class Layer:
    """One layer; a norm is None where the family has none."""

    qkv: nn.Module
    out: nn.Module
    gate_up: nn.Module
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
        self.integers = isinstance(self.head, IntegerLinear)
        self.embedding_scale, self.residual, self.logit_divisor = map(number, (row.embedding, row.residual, row.logits))
        self.score_cap, self.logit_cap = number(row.score_cap, None), number(row.logit_cap, None)
        device = body.norm.weight.device
        compiled = device.type == "cpu" and openmp() is not None
        self.operations = CompiledOperations if compiled else TorchOperations
        if compiled:
            import_module("decoding.kernels.layer_kernels")  # compiles, for seconds, where nothing is timed
        self.dtype = torch.float32 if compiled else model.dtype  # of what is not multiplied with weights, and the cache
        cap = 0.0 if self.score_cap is None else self.score_cap
        self.constants = torch.tensor([self.eps, self.residual, self.scale, cap])
        self.ropes = _ropes(body.rotary_emb)
        self.order = self._order(len(next(iter(self.ropes.values()))[0])).to(device)
        self.norm = self._norm(body.norm, row)
        self.layers = [self._layer(layer, row, i) for i, layer in enumerate(body.layers)]
        self.programs = None
        if compiled and programmable(self.layers):
            self.programs = LayerPrograms(self)
        self.model, self.versions = model, versions(model)

    @property
    def stale(self) -> bool:
        return self.versions != versions(self.model)

    def __call__(self, cache, ids: Tensor, logits_to_keep: int, hidden: bool) -> tuple[Tensor, Tensor | None]:
        """Logits [r, logits_to_keep, vocab] of ``ids`` [r, q], stored in ``cache`` as its plan says; with ``hidden``
        also the last hidden states [r, logits_to_keep, width]."""
        x = self.embedding(ids)
        x = x if self.embedding_scale == 1 else x * self.embedding_scale
        if self.programs is None or ids.numel() > TOKENS:
            operations = self.operations(self, cache.plan, x)
            self.through_layers(operations, cache)
            x = self._final(operations.x, logits_to_keep)
        else:
            with self.programs.lock:
                x = self._final(self.programs.run(cache, x), logits_to_keep)
        return self._logits(x), x if hidden else None

    def through_layers(self, operations: TorchOperations, cache) -> None:
        """Let ``operations`` take its residual stream through all layers."""
        product, (r, q, _) = operations.product, operations.x.shape
        normed = operations.begin(self.layers[0].norms[0])
        following = [layer.norms[0] for layer in self.layers[1:]] + [None]
        for layer, store, before in zip(self.layers, cache.layers, following, strict=True):
            heads = product(layer.qkv, normed).view(r, q, -1, self.width)
            seen = operations.attention(heads, layer, store)
            normed = operations.add(product(layer.out, seen), layer.norms[1], layer.norms[2])
            inner = operations.activated(product(layer.gate_up, normed))
            normed = operations.add(product(layer.down, inner), layer.norms[3], before)

    def _final(self, x: Tensor, logits_to_keep: int) -> Tensor:
        return normed(x[:, -logits_to_keep:], self.norm, self.eps).to(self.model.dtype)

    def _logits(self, x: Tensor) -> Tensor:
        logits = self.head(x)
        logits = logits if self.logit_divisor == 1 else logits / self.logit_divisor
        return logits if self.logit_cap is None else capped(logits, self.logit_cap)

    def _layer(self, layer, row: Family, index: int) -> Layer:
        attention, mlp, config = layer.self_attn, layer.mlp, layer.self_attn.config
        head_norms = (attention.q_norm, attention.k_norm) if row.head_norms else ()
        kind = getattr(attention, "layer_type", None)
        return Layer(
            qkv=self._joined_qkv([getattr(attention, name) for name in row.qkv]),
            out=attention.o_proj,
            gate_up=joined([getattr(mlp, name) for name in row.gate_up]),
            down=mlp.down_proj,
            norms=[None if name is None else self._norm(getattr(layer, name), row) for name in row.norms],
            head_norms=tuple(self._norm(norm, row)[self.order[: len(norm.weight)]] for norm in head_norms) or None,
            window=row.window(config, index),
            rope=(kind if kind in self.ropes else "") if row.rotated(config, index) else None,
        )

    def _norm(self, norm: nn.Module, row: Family) -> Tensor:
        """The factors of a norm."""
        weight = norm.weight.detach()
        return weight.to(self.dtype) if row.norm_offset == 0 else weight.float() + row.norm_offset

    def _joined_qkv(self, parts: list[nn.Module]) -> nn.Module:
        """Their product, its rows in ``order``; that of values alone has its own."""
        ends = torch.tensor([part.out_features for part in parts]).cumsum(0).tolist()
        begins = [0, *ends[:-1]]
        orders = [self.order[begin:end] - begin for begin, end in zip(begins, ends, strict=True)]
        natural = torch.arange(len(self.order), device=self.order.device)
        return joined(parts, [None if torch.equal(rows, natural[: len(rows)]) else rows for rows in orders])

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


def versions(model) -> list[tuple[int, int]]:
    """Address of each weight of a model, and how often it was changed in place: equal where no weight has changed.

    Weights that are quantised are buffers. Frequencies are no weights: texts may change them.
    """
    buffers = (buffer for name, buffer in model.named_buffers() if not name.endswith("inv_freq"))
    # A tensor made in inference mode counts no changes.
    return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in (*model.parameters(), *buffers)]
