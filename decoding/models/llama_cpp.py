"""llama.cpp as a backend: a GGUF file whose weights stay quantised, behind the interface of ``LM`` and ``Session``.

The rows of a batch are llama.cpp's sequences in one unified cache. Every ``catch_up`` is one ``llama_decode`` of the
unread tokens, without padding.

Speculative decoding is exact only if a token's logits do not depend on the tokens read with it. In one row they do not,
bit for bit, while the cache spans at most 256 tokens. In a longer one llama.cpp splits the attention of a single token
among threads; and after rollbacks of several rows, a row's tokens may be stored out of order. Both change the order of
summation, which moves logits of SmolLM2-135M in Q4_1 (up to 30) by up to 0.8, less than the 1.3 between them and those
of its float32 weights: there texts may differ at near-ties.
"""

from __future__ import annotations

import ctypes
import logging
import time
import weakref
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from decoding.kv_cache.session import BaseSession, ReadSpan
from decoding.kv_cache.token_tree import TokenTree
from decoding.models.architectures import attention, context
from decoding.models.files import check_files
from decoding.models.lm import LM, common_ids
from decoding.models.loading import read_config, read_tokenizer
from decoding.models.sources import locate

try:
    import llama_cpp
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "the llama.cpp backend needs the package llama-cpp-python; run: pip install -e '.[llama-cpp-python]'",
        name=error.name,
    ) from error

# Its callback prints messages from this logger's level on, and treats warnings as errors.
logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
llama_cpp.llama_backend_init()

UBATCH = 63
"""Tokens that llama.cpp computes at once. From 64 on its attention takes another kernel, with differences as large as
those above, and a prompt's logits would depend on its length and its batch."""
SAMPLES, SAMPLE_BYTES = 16, 4096
"""The identity of a file is made of this many samples of this many bytes."""


class Weights:
    """Weights loaded by llama.cpp, with the attributes of a transformers model that decoding reads.

    ``dtype`` is that of the cache. Raises ValueError if llama.cpp cannot load the file.
    """

    device, dtype = torch.device("cpu"), torch.float16

    def __init__(self, path: Path, config):
        from transformers import GenerationConfig

        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self.handle = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self.handle:
            raise ValueError(f"llama.cpp cannot load {path}; it is cut short, or of an architecture it does not know")
        weakref.finalize(self, llama_cpp.llama_model_free, self.handle)
        self.path, self.config = path, config
        self.generation_config = GenerationConfig.from_model_config(config)
        self.head = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.handle))
        self.width = llama_cpp.llama_model_n_embd(self.handle)


class LlamaCppLM(LM):
    """A GGUF model run by llama.cpp on the CPU, and transformers' tokenizer of the same file.

    It can replace an ``LM`` in every decoder, also next to models in torch, but reads no trees. Activations are
    quantised too, so its logits are close, not equal, to those of ``LM.load`` of the same file.

    ``threads`` None means torch's number of threads when a session begins.
    """

    def __init__(self, model: Weights, tokenizer=None, threads: int | None = None):
        self.model, self.tokenizer, self.threads = model, tokenizer, threads
        self.head, self.context = model.head, context(model.config)
        self.vocab = common_ids(self.head, tokenizer)
        self.recorders = None

    @classmethod
    def load(cls, source, threads: int | None = None) -> LlamaCppLM:
        """Load weights and tokenizer of a ``.gguf`` file.

        Raises FileNotFoundError for a missing path, ValueError if it is not a GGUF file, its architecture is not
        supported, or llama.cpp cannot load it.
        """
        found = locate(source)
        if not found.gguf:
            raise ValueError(f"llama.cpp reads .gguf files, not {source}")
        check_files(found)
        config = read_config(found, {})
        config.name_or_path = found.name
        attention(config)  # raises for an unsupported architecture
        return cls(Weights(found.folder / found.gguf, config), read_tokenizer(found, {}), threads)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> str:
        """That of the file, which llama.cpp does not convert."""
        return "gguf"

    @property
    def chains_only(self) -> str:
        return "runs in llama.cpp, where a text is a sequence of one token per position,"

    def session(self, batch: int, capacity: int) -> LlamaCppSession:
        return LlamaCppSession(self, batch, capacity)

    def _few_weights(self) -> bytes:
        """Samples of the file itself: its dequantised weights are another model to a policy."""
        size = self.model.path.stat().st_size
        with self.model.path.open("rb") as file:
            parts = [file.seek(size * i // SAMPLES) and file.read(SAMPLE_BYTES) for i in range(1, SAMPLES)]
        return str(size).encode() + b"".join(parts)


class LlamaCppSession(BaseSession):
    """A llama.cpp context with one sequence per row, freed with this object.

    Raises ValueError for more rows than llama.cpp has sequences, or if the cache cannot be allocated.
    """

    def __init__(self, lm: LlamaCppLM, batch: int, capacity: int):
        super().__init__(lm, batch)
        most = llama_cpp.llama_max_parallel_sequences()
        if batch > most:
            raise ValueError(f"llama.cpp reads at most {most} rows at once, not {batch}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = batch * capacity
        options.n_ubatch, options.n_seq_max, options.kv_unified = UBATCH, batch, True
        options.n_threads = options.n_threads_batch = torch.get_num_threads() if lm.threads is None else lm.threads
        self.handle = llama_cpp.llama_init_from_model(self.model.handle, options)
        if not self.handle:
            raise ValueError(f"llama.cpp cannot make a cache for {batch} rows of {capacity} tokens")
        weakref.finalize(self, llama_cpp.llama_free, self.handle)
        self.memory = llama_cpp.llama_get_memory(self.handle)
        self.input = BatchInput(batch, batch * capacity)
        self.held = [0] * batch
        """tokens of each row in llama.cpp's cache, at least ``read``; those after ``read`` are dropped lazily"""

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
        """``Session.catch_up``; a ``tree`` must be a chain, which is read as text, and ``span`` is ignored."""
        began = time.perf_counter()
        start = torch.minimum(self.read[rows], lengths - 1)
        unread = lengths - start
        # For each token read, row after row: its index in ``rows``, its position, and its column of the result.
        row = torch.arange(len(rows)).repeat_interleave(unread)
        position = torch.arange(len(row)) - (unread.cumsum(0) - lengths)[row]
        column = position - (lengths - logits_to_keep)[row]
        self._drop(rows.tolist(), start.tolist(), lengths.tolist())
        self.input.fill(self._readable(ids[rows[row], position]), position, rows[row], column >= 0)
        llama_cpp.llama_set_embeddings(self.handle, hidden)
        if code := llama_cpp.llama_decode(self.handle, self.input.batch):
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
        logits = self._shared(gathered(llama_cpp.llama_get_logits(self.handle), head, min(head, self.vocab)))
        self.read[rows] = lengths
        self.reads.append(len(row))
        self._count(logits, began, prompt=int(start.min()) == 0)
        if not hidden:
            return logits
        return logits, gathered(llama_cpp.llama_get_embeddings(self.handle), self.model.width, self.model.width)

    def keep_path(self, rows: Tensor, lengths: Tensor, path: Tensor, counts: Tensor) -> None:
        """``Session.keep_path``; the nodes of a chain need not be moved."""
        self.read[rows] = lengths + counts

    def _drop(self, rows: list[int], start: list[int], lengths: list[int]) -> None:
        """Drop the cached tokens of ``rows`` from ``start`` on, before they are read up to ``lengths``."""
        for row, first, length in zip(rows, start, lengths, strict=True):
            if self.held[row] > first:
                llama_cpp.llama_memory_seq_rm(self.memory, row, first, -1)
            self.held[row] = length


class BatchInput:
    """A ``llama_batch`` of at most ``size`` tokens of ``rows`` sequences, with tensors as its arrays."""

    def __init__(self, rows: int, size: int):
        self.tokens, self.positions, ones = torch.ones(3, size, dtype=torch.int32)
        self.wanted = torch.zeros(size, dtype=torch.int8)
        self.sequence_ids, self.sequences = torch.arange(rows, dtype=torch.int32), torch.zeros(size, dtype=torch.long)
        # Each token has a pointer to the ids of its sequences, here always one.
        self.addresses = self.sequence_ids.data_ptr() + 4 * torch.arange(rows)
        arrays = {
            "token": self.tokens,
            "pos": self.positions,
            "n_seq_id": ones,
            "seq_id": self.sequences,
            "logits": self.wanted,
        }
        kinds = dict(llama_cpp.llama_batch._fields_)
        self.arrays = arrays  # llama.cpp only borrows them
        self.batch = llama_cpp.llama_batch(
            **{name: ctypes.cast(array.data_ptr(), kinds[name]) for name, array in arrays.items()}
        )

    def fill(self, tokens: Tensor, positions: Tensor, rows: Tensor, wanted: Tensor) -> None:
        """``tokens`` [n] at ``positions`` [n] of ``rows`` [n], and whether their logits are ``wanted`` [n]."""
        n = self.batch.n_tokens = len(tokens)
        self.tokens[:n], self.positions[:n], self.wanted[:n] = tokens, positions, wanted
        self.sequences[:n] = self.addresses[rows]
