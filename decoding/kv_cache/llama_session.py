"""The session of a model that llama.cpp runs: rows and nodes of trees are sequences of one unified cache.

Every ``catch_up`` is one ``llama_decode`` of the unread tokens, without padding. A token of a text is in its row's
sequence; a node of a tree has a sequence of its own, the text and the path to the node, so that it sees no other node.
Sequences share the cells of their tokens.

Speculative decoding is exact only if a token's logits do not depend on the tokens read with it. In one row they do not,
bit for bit, while the cache spans at most 256 tokens. In a longer one llama.cpp splits the attention of a single token
among threads; and after rollbacks of several rows or reading trees, a row's tokens may be stored out of order. Both
change the order of summation, which moves logits of SmolLM2-135M in Q4_1 (up to 30) by up to 0.8, less than the 1.3
between them and those of its float32 weights: there texts may differ at near-ties.
"""

from __future__ import annotations

import ctypes
import time
import weakref

import numpy as np
import torch
from torch import Tensor

from decoding.kv_cache.llama_sequences import Sequences
from decoding.kv_cache.session import BaseSession, ReadSpan
from decoding.kv_cache.token_tree import TokenTree
from decoding.models.llama_library import SEQUENCES, Batch, library

UBATCH = 63
"""Tokens that llama.cpp computes at once. From 64 on its attention takes another kernel, with differences as large as
those above, and a prompt's logits would depend on its length and its batch."""


class LlamaCppSession(BaseSession):
    """A llama.cpp context with one sequence per row and per node of a tree, freed with this object.

    Raises ValueError for more rows or nodes than llama.cpp has sequences, or if the cache cannot be allocated.
    """

    def __init__(self, lm, batch: int, capacity: int, scratch: int = 0):
        super().__init__(lm, batch)
        if batch > SEQUENCES:
            raise ValueError(f"llama.cpp reads at most {SEQUENCES} rows at once, not {batch}")
        self.lib = library()
        options = self.lib.llama_context_default_params()
        options.n_ctx = options.n_batch = batch * capacity
        options.n_ubatch, options.kv_unified = UBATCH, True
        options.n_seq_max = min(SEQUENCES, batch * (1 + scratch))  # memory for logits of each
        options.n_outputs_max_per_seq = 0  # no limit
        options.n_threads = options.n_threads_batch = torch.get_num_threads() if lm.threads is None else lm.threads
        self.handle = self.lib.llama_init_from_model(self.model.handle, options)
        if not self.handle:
            raise ValueError(f"llama.cpp cannot make a cache for {batch} rows of {capacity} tokens")
        weakref.finalize(self, self.lib.llama_free, self.handle)
        self.sequences = Sequences(self.lib, self.lib.llama_get_memory(self.handle), batch, options.n_seq_max)
        self.input = BatchInput(batch * capacity)

    @torch.no_grad()
    def catch_up(
        self,
        ids: Tensor,
        lengths: Tensor,
        rows: Tensor,
        logits_to_keep: int = 1,
        hidden: bool = False,
        tree: TokenTree | None = None,
        span: ReadSpan | None = None,
    ):
        """``Session.catch_up``; ``span`` is ignored. Logits of nodes beyond a row's budget are 0: they are not read."""
        began = time.perf_counter()
        start = torch.minimum(self.read[rows], lengths - 1)
        unread = lengths - start
        # For each token read, row after row: its index in ``rows``, its slot, and its column of the result.
        row = torch.arange(len(rows)).repeat_interleave(unread)
        slot = torch.arange(len(row)) - (unread.cumsum(0) - lengths)[row]
        self.sequences.drop(rows.tolist(), start.tolist())
        if tree is None:
            position, sequences = slot, (rows[row], torch.ones_like(row))
            self.sequences.extend(rows.tolist(), lengths.tolist())
        else:
            row, slot, position = _within_budget(tree, row, slot)
            sequences = self.sequences.branch(tree, rows, row, slot - tree.start[row])
        column = slot - (lengths - logits_to_keep)[row]
        self.input.fill(self._readable(ids[rows[row], slot]), position, *sequences, column >= 0)
        self.lib.llama_set_embeddings(self.handle, hidden)
        if code := self.lib.llama_decode(self.handle, self.input.batch):
            raise RuntimeError(f"llama_decode of {len(row)} tokens by {self.name} returned {code}")
        where = row[column >= 0], column[column >= 0]
        shown = column >= 0 if hidden else slice(None)  # with hidden states, all tokens have outputs
        outputs = len(row) if hidden else len(where[0])

        def gathered(pointer, width: int, most: int) -> Tensor:
            """[r, logits_to_keep, most] copied from the output [outputs, width] at ``pointer``, which is reused."""
            values = torch.from_numpy(np.ctypeslib.as_array(pointer, (outputs, width)))[shown, :most]
            if len(values) == len(rows) * logits_to_keep:
                return values.reshape(len(rows), logits_to_keep, most).clone()
            return values.new_zeros(len(rows), logits_to_keep, most).index_put_(where, values)

        head = self.model.head
        logits = self._shared(gathered(self.lib.llama_get_logits(self.handle), head, min(head, self.vocab)))
        self.read[rows] = lengths
        self.reads.append(len(row))
        self._count(logits, began, prompt=int(start.min()) == 0)
        if not hidden:
            return logits
        return logits, gathered(self.lib.llama_get_embeddings(self.handle), self.model.width, self.model.width)

    def keep_path(self, rows: Tensor, lengths: Tensor, path: Tensor, counts: Tensor) -> None:
        """``Session.keep_path``."""
        self.read[rows] = lengths + counts
        self.sequences.keep(rows.tolist(), path.tolist(), counts.tolist())

    def rollback(self, rows: Tensor, lengths: Tensor) -> None:
        """``Session.rollback``, also to a node of a tree that is a chain."""
        super().rollback(rows, lengths)
        self.sequences.keep_chain(rows.tolist(), lengths.tolist())


def _within_budget(tree: TokenTree, row: Tensor, slot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Those of the tokens in ``row`` [n] and ``slot`` [n] whose positions no budget clamps, and their positions."""
    node = (slot - tree.start[row]).clamp(min=0)
    depth = tree.seen[row, node].sum(-1)  # in a sequence every node has a position of its own
    text = slot < tree.start[row]
    kept = text | (depth == tree.depth[row, node])
    position = torch.where(text, slot, tree.start[row] - 1 + depth)
    return row[kept], slot[kept], position[kept]


class BatchInput:
    """A ``llama_batch`` of at most ``size`` tokens, with tensors as its arrays."""

    def __init__(self, size: int):
        self.tokens, self.positions, self.counts = torch.zeros(3, size, dtype=torch.int32)
        self.wanted, self.addresses = torch.zeros(size, dtype=torch.int8), torch.zeros(size, dtype=torch.long)
        self.sequences = torch.zeros(0, dtype=torch.int32)
        arrays = {
            "token": self.tokens,
            "pos": self.positions,
            "n_seq_id": self.counts,
            "seq_id": self.addresses,
            "logits": self.wanted,
        }
        kinds = dict(Batch._fields_)
        self.batch = Batch(**{name: ctypes.cast(array.data_ptr(), kinds[name]) for name, array in arrays.items()})

    def fill(self, tokens: Tensor, positions: Tensor, sequences: Tensor, counts: Tensor, wanted: Tensor) -> None:
        """``tokens`` [n] at ``positions`` [n], each in the next ``counts`` [n] of ``sequences``; whether their logits
        are ``wanted`` [n]."""
        n = self.batch.n_tokens = len(tokens)
        self.sequences = sequences.int()  # llama.cpp only borrows it
        self.tokens[:n], self.positions[:n], self.counts[:n], self.wanted[:n] = tokens, positions, counts, wanted
        self.addresses[:n] = self.sequences.data_ptr() + 4 * (counts.cumsum(0) - counts)
