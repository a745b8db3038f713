"""Continuations of a text that share their beginnings, as a cache holds them and as attention sees them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from decoding.kv_cache.attention import AttentionPositions


@dataclass(slots=True)
class TokenTree:
    """n nodes after each of r texts; node i lies in slot ``start + i`` and stands ``depth`` tokens after the text."""

    start: Tensor
    """[r] tokens in the text"""
    depth: Tensor
    """[r, n] from 1"""
    seen: Tensor
    """[r, n, n] True where a node sees another: itself and its ancestors"""

    def of(self, which: Tensor) -> TokenTree:
        """The trees of some of the rows."""
        return TokenTree(self.start[which], self.depth[which], self.seen[which])

    def places(self, slots: Tensor, reach: int) -> AttentionPositions:
        """Where the tokens in ``slots`` [r, q] stand, and what they see of slots 0, 1 ... ``reach`` - 1."""
        keys = torch.arange(reach, device=slots.device).expand(len(slots), -1)
        rows = torch.arange(len(slots), device=slots.device)[:, None, None]
        seen = self.seen[rows, self._node(slots)[..., None], self._node(keys)[:, None]]
        # A token of the text, whatever it sees here, stands before all nodes: a causal mask hides them.
        text, node = keys < self.start[:, None], keys < self.start[:, None] + self.depth.shape[1]
        return AttentionPositions(
            self._positions(slots), self._positions(keys), ~(text[:, None] | node[:, None] & seen)
        )

    def _positions(self, slots: Tensor) -> Tensor:
        start = self.start[:, None]
        return torch.where(slots < start, slots, start - 1 + self.depth.gather(1, self._node(slots)))

    def _node(self, slots: Tensor) -> Tensor:
        return (slots - self.start[:, None]).clamp(0, self.depth.shape[1] - 1)
