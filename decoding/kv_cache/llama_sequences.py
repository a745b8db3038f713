"""The sequences of a llama.cpp cache: one a row for its text, one a node of a tree for the text and the path to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from decoding.kv_cache.token_tree import TokenTree
from decoding.models.llama_library import SEQUENCES


class Sequences:
    """Which sequence is what; copying one copies no keys or values, only marks in the cells that it shares.

    ``held`` [batch]: tokens of each row's text in its sequence, at least those ``read``, as texts are dropped lazily.
    ``nodes`` [batch]: the sequences of the nodes after each row's text, None for a node that was not read.
    """

    def __init__(self, lib, memory, batch: int, most: int):
        self.lib, self.memory = lib, memory
        self.held = [0] * batch
        self.nodes: list[list[int | None]] = [[] for _ in range(batch)]
        self.free = list(range(batch, most))

    def drop(self, rows: list[int], starts: list[int]) -> None:
        """Forget the tokens of ``rows`` in the slots from ``starts`` on."""
        for row, start in zip(rows, starts, strict=True):
            if self.nodes[row]:
                self._forget(row, max(start - self.held[row], 0))
            if self.held[row] > start:
                self.lib.llama_memory_seq_rm(self.memory, row, start, -1)
                self.held[row] = start

    def extend(self, rows: list[int], lengths: list[int]) -> None:
        """The texts of ``rows`` are about to be read up to ``lengths``."""
        for row, length in zip(rows, lengths, strict=True):
            self.held[row] = length

    def branch(self, tree: TokenTree, rows: Tensor, row: Tensor, node: Tensor) -> tuple[Tensor, Tensor]:
        """Give the nodes about to be read sequences, and those the tokens before them that are read already.

        ``node`` [n], negative for a token of the text, is in the tree of the row ``rows[row]`` [n]. Returns the
        sequences that each of the n tokens is in, flat, and how many [n]: its own, and those of all nodes about to be
        read that see it. Raises ValueError if llama.cpp has too few.
        """
        own, counts = [], []
        for i, r in enumerate(rows.tolist()):
            here, seen = node[row == i].tolist(), tree.seen[i].tolist()
            new = [k for k in here if k >= 0]
            self.held[r] = int(tree.start[i])
            for k in new:
                self._grow(r, k, [above for above, sees in enumerate(seen[k][: new[0]]) if sees])
            for k in here:
                sees = [j for j in new if k < 0 or (j > k and seen[j][k])]
                own += [r if k < 0 else self.nodes[r][k], *(self.nodes[r][j] for j in sees)]
                counts.append(1 + len(sees))
        return torch.tensor(own), torch.tensor(counts)

    def keep(self, rows: list[int], paths: Sequence[Sequence[int]], counts: list[int]) -> None:
        """Append the first ``counts`` nodes of ``paths`` to the texts of ``rows``, and forget all others."""
        for row, path, count in zip(rows, paths, counts, strict=True):
            if self.nodes[row] and count:
                length = self.held[row] + count
                last = self.nodes[row][path[count - 1]]
                self.lib.llama_memory_seq_cp(self.memory, last, row, self.held[row], length)
                self.held[row] = length
            self._forget(row, 0)

    def keep_chain(self, rows: list[int], lengths: list[int]) -> None:
        """``keep`` the first nodes of trees that are chains, up to texts of ``lengths``."""
        for row, length in zip(rows, lengths, strict=True):
            count = max(length - self.held[row], 0) if self.nodes[row] else 0
            self.keep([row], [range(count)], [count])

    def _grow(self, row: int, node: int, above: list[int]) -> None:
        """A sequence for ``node``: a copy of that of the last node in ``above``, or of the text."""
        if not self.free:
            raise ValueError(
                f"llama.cpp has {SEQUENCES} sequences, too few for the nodes of these trees; take fewer rows, beams or "
                "branches"
            )
        sequences, new = self.nodes[row], self.free.pop()
        self.lib.llama_memory_seq_cp(self.memory, sequences[above[-1]] if above else row, new, -1, -1)
        sequences += [None] * (node - len(sequences)) + [new]

    def _forget(self, row: int, first: int) -> None:
        """Free the sequences of the nodes from ``first`` on."""
        for sequence in self.nodes[row][first:]:
            if sequence is not None:
                self.lib.llama_memory_seq_rm(self.memory, sequence, -1, -1)
                self.free.append(sequence)
        del self.nodes[row][first:]
