"""A tree of continuations of a text: their slots in a cache, and what each node attends to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from decoding.kv_cache.attention import AttentionPositions


@dataclass(slots=True)
class TokenTree:
    """n nodes after each of r texts; node i is in slot ``start + i``, at position ``start + depth[i] - 1``."""

    start: Tensor  # [r] tokens in the text
    depth: Tensor  # [r, n] levels below the text, from 1
    seen: Tensor  # [r, n, n] True where a node sees a node: itself and its ancestors

    def of(self, which: Tensor) -> TokenTree:
        """The trees of some of the rows."""
        return TokenTree(self.start[which], self.depth[which], self.seen[which])

    def positions(self, slots: Tensor, reach: int) -> AttentionPositions:
        """Positions of the tokens in ``slots`` [r, q], and which of the first ``reach`` slots they do not see."""
        keys = torch.arange(reach, device=slots.device).expand(len(slots), -1)
        rows = torch.arange(len(slots), device=slots.device)[:, None, None]
        seen = self.seen[rows, self._node(slots)[..., None], self._node(keys)[:, None]]
        # For a token of the text ``seen`` means nothing: it is before all nodes, so the causal mask hides them.
        text, node = keys < self.start[:, None], keys < self.start[:, None] + self.depth.shape[1]
        return AttentionPositions(self._position(slots), self._position(keys), ~(text[:, None] | node[:, None] & seen))

    def _position(self, slots: Tensor) -> Tensor:
        start = self.start[:, None]
        return torch.where(slots < start, slots, start - 1 + self.depth.gather(1, self._node(slots)))

    def _node(self, slots: Tensor) -> Tensor:
        return (slots - self.start[:, None]).clamp(0, self.depth.shape[1] - 1)
