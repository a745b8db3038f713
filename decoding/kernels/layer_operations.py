"""The operations of a layer between its products, in torch or compiled for the CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoding.kv_cache.attention import row_mask

FEW = 64
"""Tokens of a row, drafts and trees among them, that compiled attention reads: their bits then do not depend on what
else is read with them. Of integer weights it reads any number, since their rounding of activations enlarges last bits:
a prompt of 512 tokens takes 2 to 15 % longer than with torch's, which multiplies blocks and is faster from 16 on."""


class TorchOperations:
    """One forward's residual stream ``x`` [r, q, n], and the operations on it, for any device.

    ``fused`` is the ``FusedForward``, ``plan`` the cache's.
    """

    def __init__(self, fused, plan, x: Tensor):
        self.fused, self.plan, self.x = fused, plan, x
        self.turns: dict[str, Tensor] = {}
        self.masks: dict[int | None, Tensor | None] = {}

    def product(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x)

    def begin(self, weight: Tensor | None) -> Tensor:
        """``x`` normed by the first layer's norm."""
        return normed(self.x, weight, self.fused.eps)

    def add(self, delta: Tensor, after: Tensor | None, before: Tensor | None) -> Tensor:
        """Add ``delta``, normed by ``after``, to ``x``; returns ``x`` normed by ``before``."""
        self.x = torch.add(self.x, normed(delta, after, self.fused.eps), alpha=self.fused.residual)
        return normed(self.x, before, self.fused.eps)

    def activated(self, both: Tensor) -> Tensor:
        """Activation of the gate, the first half of ``both``, times the second."""
        gate, up = both.chunk(2, -1)
        return self.fused.activation(gate).mul_(up)

    def attention(self, heads: Tensor, layer, store) -> Tensor:
        """[r, q, heads * width] attention of ``heads`` [r, q, heads + 2 * groups, width] over a cache layer."""
        sizes = self.fused.heads, self.fused.groups
        turned, value = heads.split((sum(sizes), sizes[1]), 2)
        if layer.head_norms is not None:
            parts = zip(turned.split(sizes, 2), layer.head_norms, strict=True)
            turned = torch.cat([self._normed_heads(part, weight) for part, weight in parts], 2)
        if layer.rope is not None:
            pairs = torch.view_as_complex(turned.float().unflatten(-1, (-1, 2)))
            turned = torch.view_as_real(pairs * self._turn(layer.rope)).flatten(-2).to(heads.dtype)
        query, key = turned.split(sizes, 2)
        keys, values = store.update(key.transpose(1, 2), value.transpose(1, 2))
        return self._seen(query, keys, values, layer.window)

    def _seen(self, query: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
        """Attention of ``query`` [r, q, heads, width] to ``keys`` and ``values`` [r, groups, reach, width]."""
        (r, q, heads, width), groups = query.shape, self.fused.groups
        share = heads // groups
        # The query heads of a group become queries of one head, so keys and values are not repeated.
        query = query.reshape(r, q, groups, share, width).permute(0, 2, 3, 1, 4).reshape(r, groups, -1, width)
        if window not in self.masks:
            mask = self._mask(window)
            self.masks[window] = mask if mask is None or q == 1 else mask.repeat(1, 1, share, 1)
        seen = self._scored(query, keys, values, self.masks[window])
        return seen.view(r, groups, share, q, width).permute(0, 3, 1, 2, 4).reshape(r, q, -1)

    def _scored(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        scale, cap = self.fused.scale, self.fused.score_cap
        if cap is None:
            return F.scaled_dot_product_attention(query, keys, values, mask, scale=scale)
        scores = capped(query @ keys.transpose(2, 3) * scale, cap)
        scores = scores if mask is None else scores + mask
        return F.softmax(scores, -1, dtype=torch.float32).to(query.dtype) @ values

    def _turn(self, rope: str) -> Tensor:
        """[r, q, 1, width / 2] complex factors that rotate pairs of values."""
        if rope not in self.turns:
            turn = rotations(self.plan.positions.queries, *self.fused.ropes[rope])
            rest = self.fused.width // 2 - turn.shape[-1]  # of a partial rotation: factors of 1
            self.turns[rope] = (F.pad(turn, (0, rest), value=1.0) if rest else turn)[:, :, None]
        return self.turns[rope]

    def _mask(self, window: int | None) -> Tensor | None:
        """Additive mask [r, 1, q, reach]; None where one token of a single row sees everything."""
        plan, positions = self.plan, self.plan.positions
        within = window is None or plan.reach <= window
        alone = positions.queries.numel() == 1 and plan.rows is None and positions.hidden is None
        if alone and within and not plan.rounded:
            return None

        def seen(row, head, query, key):
            return key <= query if window is None else (key <= query) & (key > query - window)

        return row_mask(positions, additive=True, kv_length=plan.reach, mask_function=seen, dtype=self.fused.dtype)

    def _normed_heads(self, x: Tensor, weight: Tensor) -> Tensor:
        """``x`` [r, q, n, width], normed over as many of its numbers as ``weight`` has: a head's, or all."""
        return normed(x.reshape(*x.shape[:2], -1, len(weight)), weight, self.fused.eps).view(x.shape)


class CompiledOperations(TorchOperations):
    """The same on a CPU, in ``layer_kernels``: numbers are float32 wherever they are not multiplied with weights."""

    def __init__(self, fused, plan, x: Tensor):
        from decoding.kernels import layer_kernels

        super().__init__(fused, plan, x.float())
        self.kernels, self.tokens, self.dtype = layer_kernels, x.shape[:-1].numel(), fused.model.dtype
        self.constants = fused.constants.data_ptr()
        self.out = torch.empty_like(self.x)
        self.queries = plan.positions.queries.contiguous()

    def product(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x) if self.dtype == torch.float32 else layer(x.to(self.dtype)).float()

    def begin(self, weight: Tensor | None) -> Tensor:
        return self.add(None, None, weight)

    def add(self, delta: Tensor | None, after: Tensor | None, before: Tensor | None) -> Tensor:
        delta = None if delta is None else delta.contiguous()
        pointers = [0 if t is None else t.data_ptr() for t in (self.x, self.out, delta, after, before)]
        self.run(self.kernels.add_norm, *pointers, self.tokens, self.x.shape[-1], self.constants)
        return self.x if before is None else self.out

    def empty(self, role: str, *shape: int) -> Tensor:
        return torch.empty(shape)

    def run(self, kernel, *arguments: int) -> None:
        self.kernels.run(kernel, *arguments)

    def run_parallel(self, kernel, *arguments: int) -> None:
        self.kernels.run_parallel(kernel, torch.get_num_threads(), *arguments)

    def activated(self, both: Tensor) -> Tensor:
        n = both.shape[-1] // 2
        out, both = self.empty("inner", *both.shape[:-1], n), both.contiguous()
        gelu = self.fused.activation is not F.silu
        self.run(self.kernels.activate, both.data_ptr(), out.data_ptr(), self.tokens, n, gelu)
        return out

    def attention(self, heads: Tensor, layer, store) -> Tensor:
        fused, plan, heads = self.fused, self.plan, heads.contiguous()
        (r, q, _, width), sizes = heads.shape, (fused.heads, fused.groups)
        query, key, value = heads.split((*sizes, fused.groups), 2)
        keys, values = store.stores(key.transpose(1, 2), value.transpose(1, 2))
        if layer.rope is not None and layer.rope not in self.turns:
            self.turns[layer.rope] = rotations(self.queries, *fused.ropes[layer.rope])
        turn = None if layer.rope is None else self.turns[layer.rope]
        norms = (None, None) if layer.head_norms is None else layer.head_norms
        pointers = [0 if t is None else t.data_ptr() for t in (heads, plan.slots, keys, values, turn, *norms)]
        together = norms[0] is not None and len(norms[0]) != width
        pairs = 0 if turn is None else turn.shape[-1]
        self.run(self.kernels.place, *pointers, together, r * q, *sizes, width, pairs, self.constants)
        if q > FEW and not fused.integers:
            return self._seen(query, store.seen(keys), store.seen(values), layer.window)
        return self._few(heads, keys, values, layer.window)

    def _few(self, heads: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
        fused, plan, (r, q, _, width) = self.fused, self.plan, heads.shape
        out = self.empty("seen", r, q, fused.heads * width)
        scratch, mask = self.empty("scratch", self.kernels.SCRATCH * torch.get_num_threads() * plan.reach), None
        if plan.positions.keys is not None:
            if window not in self.masks:
                self.masks[window] = self._mask(window)
            mask = self.masks[window]
        tensors = heads, keys, values, out, scratch, self.queries, plan.rows, mask
        pointers = [0 if t is None else t.data_ptr() for t in tensors]
        sizes = r, q, fused.heads, fused.groups, width, keys.shape[1], plan.reach, window or 0
        self.run_parallel(self.kernels.attend, *pointers, *sizes, self.constants)
        return out


def rotations(positions: Tensor, frequencies: Tensor, scaling: float) -> Tensor:
    """[r, q, width / 2] complex factors that rotate pairs of values at ``positions`` [r, q]."""
    angles = positions[..., None] * frequencies
    return torch.polar(torch.full_like(angles, scaling), angles)


def normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``x`` [..., n] divided by its root mean square, times ``weight`` [n]; itself without one."""
    return x if weight is None else F.rms_norm(x.to(weight.dtype), weight.shape, weight, eps).to(x.dtype)


def capped(x: Tensor, most: float) -> Tensor:
    return torch.tanh(x / most) * most
