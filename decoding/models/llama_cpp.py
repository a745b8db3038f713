"""llama.cpp as a backend: a GGUF file whose weights stay quantised, behind the interface of ``LM``."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import torch

from decoding.kv_cache.llama_session import LlamaCppSession
from decoding.models.architectures import attention, context
from decoding.models.files import check_files
from decoding.models.llama_library import library
from decoding.models.lm import LM, common_ids
from decoding.models.loading import read_config_and_tokenizer
from decoding.models.sources import locate

SAMPLES, SAMPLE_BYTES = 16, 4096
"""The identity of a file is made of this many samples of this many bytes."""


class Weights:
    """Weights loaded by llama.cpp, with the attributes of a transformers model that decoding reads.

    ``dtype`` is that of the cache. Raises ValueError if llama.cpp cannot load the file.
    """

    device, dtype = torch.device("cpu"), torch.float16

    def __init__(self, path: Path, config):
        from transformers import GenerationConfig

        lib = library()
        options = lib.llama_model_default_params()
        options.n_gpu_layers = 0
        self.handle = lib.llama_model_load_from_file(os.fsencode(path), options)
        if not self.handle:
            raise ValueError(f"llama.cpp cannot load {path}; it is cut short, or of an architecture it does not know")
        weakref.finalize(self, lib.llama_model_free, self.handle)
        self.path, self.config = path, config
        self.generation_config = GenerationConfig.from_model_config(config)
        self.head = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.handle))
        self.width = lib.llama_model_n_embd(self.handle)


class LlamaCppLM(LM):
    """A GGUF model run by llama.cpp on the CPU, and transformers' tokenizer of the same file.

    It can replace an ``LM`` in every decoder, also next to models in torch. Activations are quantised too, so its
    logits are close, not equal, to those of ``LM.load`` of the same file.

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
        supported, or llama.cpp cannot load it, ImportError without a llama.cpp that can be called.
        """
        library()
        found = locate(source)
        if not found.gguf:
            raise ValueError(f"llama.cpp reads .gguf files, not {source}")
        check_files(found)
        config, tokenizer = read_config_and_tokenizer(found, {})
        config.name_or_path = found.name
        attention(config)  # raises for an unsupported architecture
        return cls(Weights(found.folder / found.gguf, config), tokenizer, threads)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> str:
        """That of the file, which llama.cpp does not convert."""
        return "gguf"

    def weights_held(self) -> str:
        """``LM.weights_held``."""
        return "as in the file"

    @property
    def chains_only(self) -> None:
        """Trees are read, whatever the architecture."""

    def fused_forward(self) -> None:
        """None of ours: llama.cpp makes its forwards."""

    def session(self, batch: int, capacity: int, scratch: int = 0) -> LlamaCppSession:
        return LlamaCppSession(self, batch, capacity, scratch)

    def read(self, ids: torch.Tensor, logits_to_keep: int) -> torch.Tensor:
        rows, length = ids.shape
        session = self.session(rows, length)
        session.share(self.head, None)
        return session.catch_up(ids, torch.full((rows,), length), torch.arange(rows), logits_to_keep)

    def _few_weights(self) -> bytes:
        """Samples of the file itself: its dequantised weights are another model to a policy."""
        size = self.model.path.stat().st_size
        with self.model.path.open("rb") as file:
            parts = [file.seek(size * i // SAMPLES) and file.read(SAMPLE_BYTES) for i in range(1, SAMPLES)]
        return str(size).encode() + b"".join(parts)
