"""``LM``: weights and a tokenizer, no state."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from weakref import WeakKeyDictionary

import torch

from decoding.kernels.cuda_graphs import Recorders, recordable
from decoding.kernels.families import family
from decoding.kernels.fused_forward import FusedForward
from decoding.kernels.packed_products import PackedLinear, pack, weights
from decoding.kernels.quantized import IntegerEmbedding, IntegerLinear
from decoding.kv_cache.attention import use_attention
from decoding.kv_cache.session import Session
from decoding.models.architectures import attention, context, counts_slots
from decoding.models.dtypes import chosen, settled
from decoding.models.files import check_files
from decoding.models.loading import check_values, read_config_and_tokenizer, read_weights
from decoding.models.memory import GIB, check_weights
from decoding.models.settings import ends_and_changes
from decoding.models.sources import locate

CONFIG_KEYS = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


class LM:
    """A causal language model and its tokenizer.

    ``LM.load`` takes a folder, a hub id or a ``.gguf`` file. ``LM(hf_model, tokenizer)`` wraps a loaded model, also a
    quantised one or one with a device_map, and sets its attention implementation. With ``graphs``, on one CUDA device,
    forwards of few tokens become CUDA graphs (``kernels.cuda_graphs``). Raises ValueError for an architecture for which
    decoding would not be exact, and for weights that are visibly no model (``loading.check_values``).
    """

    def __init__(self, model, tokenizer=None, graphs=False):
        use_attention(model, attention(model.config))
        check_values(model)
        self.model, self.tokenizer = model.eval(), tokenizer
        self.head = model.config.vocab_size
        self.vocab = common_ids(self.head, tokenizer)
        self.context = context(model.config)
        self._fused: FusedForward | None = None
        self.recorders = Recorders(model) if graphs and recordable(model) else None

    @classmethod
    def load(cls, source, device="cpu", dtype="float32", trust_remote_code=False, packed=True, graphs=True) -> LM:
        """Load weights and tokenizer; a GGUF file is read tensor by tensor.

        ``dtype`` "int4" and "int8", on an x86 CPU, hold all matrices in 4 or 8 bits, rounded within 32 neighbours
        unless they have that form. "file" keeps the bits of a quantised GGUF file, matrix by matrix: 4, 6 or 8
        (``gguf_blocks.EXACT``). "auto" is what the files hold where that is multiplied faster than float32
        (``dtypes.settled``). On CPU the linear layers
        of other dtypes are ``packed``: faster, and in no other form until asked for (``kernels.packed_products``).
        On CUDA there are ``graphs`` unless they are refused: a first text of each size takes longer.
        Raises FileNotFoundError for a source that is not found, ValueError, in one sentence, for an unknown dtype, for
        files that are not whole or do not fit each other, and for weights that do not fit into memory: what can be
        known before they are read, before.
        """
        chosen(dtype, torch.device(device))  # raises, before anything is looked for
        found = locate(source)
        packed = packed and torch.device(device).type == "cpu"
        weights_there = check_files(found)
        kind, bits = settled(dtype, found, torch.device(device))
        check_weights(found.name, weights_there, kind, torch.device(device), bits)
        options = {"trust_remote_code": trust_remote_code}
        config, tokenizer = read_config_and_tokenizer(found, options)
        attention(config)  # raises for an unsupported architecture
        model = read_weights(found, config, kind, options, bits).to(device)
        if packed:
            check_values(model)  # before its weights are packed
            pack(model)
        lm = cls(model, tokenizer, graphs)
        if packed:
            lm.fused_forward()  # now, so that the model's own forward multiplies the same way, to the bit, at all times
        return lm

    @property
    def name(self) -> str:
        """Hub id, or the last part of the path it was loaded from."""
        source = str(self.model.config.name_or_path) or self.model.config.model_type
        return Path(source).name if Path(source).is_absolute() else source

    @property
    def device(self) -> torch.device:
        """The device of token ids: with accelerate that on which the embedding runs, wherever its weights are."""
        hook = getattr(self.model.get_input_embeddings(), "_hf_hook", None)
        place = getattr(hook, "execution_device", None)
        return self.model.device if place is None else torch.device(place)

    @property
    def dtype(self) -> str:
        """That of its weights, such as "bfloat16"; of integers "int4", "int8", or "file" if they are not all alike."""
        modules = self.model.modules()
        bits = {m.matrix.bits for m in modules if isinstance(m, IntegerLinear | IntegerEmbedding)}
        if bits:
            return f"int{bits.pop()}" if bits in ({4}, {8}) else "file"
        return str(self.model.dtype).removeprefix("torch.")

    def weights_held(self) -> str:
        """The form of its weights in memory, for a reader: "4 and 6 bits, 0.90 GiB", or their dtype."""
        modules = [m for m in self.model.modules() if isinstance(m, IntegerLinear | IntegerEmbedding)]
        if not modules:
            return self.dtype
        bits = sorted({module.matrix.bits for module in modules})
        size = sum({t.data_ptr(): t.nbytes for module in modules for t in module.buffers()}.values())
        return f"{' and '.join(map(str, bits))} bits, {size / GIB:.2f} GiB"

    @cached_property
    def vocabulary(self) -> dict[str, int | None]:
        """Token to id, special ids included; without a tokenizer only the size."""
        if self.tokenizer is None:
            return {"size": self.vocab}
        names = ("bos_token_id", "eos_token_id")
        special = {f"<{name} of the tokenizer>": getattr(self.tokenizer, name, None) for name in names}
        return dict(sorted(self.tokenizer.get_vocab().items())) | special

    @cached_property
    def tokenizer_hash(self) -> str:
        """Equal for equal vocabularies. Cached, also for models that share a tokenizer: a vocabulary of 150,000 tokens
        takes half a second."""
        if self.tokenizer is None:
            return _digest(json.dumps(self.vocabulary))
        about = len(self.tokenizer), self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        known = _hashes.setdefault(self.tokenizer, {})
        if about not in known:
            known[about] = _digest(json.dumps(self.vocabulary))
        return known[about]

    def session(self, batch: int, capacity: int, scratch: int = 0) -> Session:
        """A new cache for ``batch`` rows of at most ``capacity`` tokens, of which ``scratch`` may be nodes of trees."""
        return Session(self, batch, capacity)

    @torch.no_grad()
    def read(self, ids: torch.Tensor, logits_to_keep: int) -> torch.Tensor:
        """Logits [r, logits_to_keep, head] after the last tokens of texts ``ids`` [r, n], those that decoding sees."""
        if self.fused_forward() is not None:
            (r, n), device = ids.shape, ids.device
            what = torch.full((r,), n, device=device), torch.arange(r, device=device)
            return self.session(r, n).catch_up(ids, *what, logits_to_keep)
        return self.model(input_ids=ids, use_cache=False, logits_to_keep=logits_to_keep).logits

    @property
    def chains_only(self) -> str | None:
        """The reason why this model cannot read a tree, in which tokens share positions; None if it can."""
        if not counts_slots(self.model.config):
            return None
        return f"({self.model.config.model_type}) places tokens by their slots in the cache (ALiBi)"

    def fused_forward(self) -> FusedForward | None:
        """An equivalent forward of fewer operations than the model's own, or None; on CPU only for packed weights."""
        if self._fused is None or self._fused.stale:
            packed = isinstance(self.model.get_output_embeddings(), PackedLinear | IntegerLinear)
            known = (packed or self.device.type != "cpu") and family(self.model) is not None
            with torch.inference_mode(False), torch.no_grad():
                self._fused = FusedForward(self.model) if known else None
        return self._fused

    def identity(self) -> dict[str, str]:
        """The name, hashes of tokenizer, config and some weights, their dtype, and the ends and processors of its
        generation_config.

        Stored with a policy tuned on this model, a run and its traces.
        """
        config = self.model.config
        return {
            "name": self.name,
            "tokenizer": self.tokenizer_hash,
            "config": _digest(json.dumps([str(getattr(config, key, None)) for key in CONFIG_KEYS])),
            "weights": _digest(self._few_weights()),
            "dtype": self.dtype,
            "generation_config": str(ends_and_changes(self)),
        }

    def _few_weights(self) -> bytes:
        # Neither quantised weights nor those that accelerate has offloaded.
        strange = {n for n, w in self.model.named_parameters() if type(w) is not torch.nn.Parameter or w.is_meta}
        known = {name: read for name, read in weights(self.model).items() if name not in strange}
        few = [known[name]() for name in sorted(known)[:: max(1, len(known) // 8)]]
        return b"".join(
            w.flatten()[:512].detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes() for w in few
        )


_hashes: WeakKeyDictionary = WeakKeyDictionary()
"""by tokenizer, then by what may be changed in it"""


def common_ids(head: int, tokenizer) -> int:
    """Number of ids that both a head of ``head`` logits and the tokenizer, if any, know."""
    # Not len(tokenizer): ids may have gaps, and a tokenizer may know tokens that the head does not.
    return head if tokenizer is None else min(head, max(tokenizer.get_vocab().values()) + 1)


def _digest(data: str | bytes) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:16]
