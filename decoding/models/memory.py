"""Checks that weights fit into memory, before they are read, and the caches of a generation, before any forward."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from decoding.errors import MemoryTooSmall
from decoding.kernels.cuda_graphs import rounded
from decoding.kernels.integer_products import GROUP, TILE
from decoding.models.architectures import head_width
from decoding.models.files import Weights
from decoding.models.gguf_blocks import EXACT

GIB = 2**30


def check_weights(
    name: str, weights: Weights, dtype: torch.dtype, device: torch.device, bits: int | None = None
) -> int:
    """Bytes that ``weights`` take; ValueError, with sizes in GiB, if that exceeds the available memory.

    bits: of matrices of integers (``gguf_blocks.matrix``); all else is of ``dtype``.
    """
    size, room = weight_bytes(weights, dtype, device, bits), available(device)
    if size > room:
        asked = str(dtype).removeprefix("torch.") if bits is None else f"int{bits}" if bits else "file"
        smaller = "" if bits == 4 else f"a smaller dtype than {asked}, or "
        raise ValueError(
            f"the weights of {name} take {size / GIB:.1f} GiB of memory, but {device} has {room / GIB:.1f} GiB; take "
            f"{smaller}a smaller model"
        )
    return size


def check_whole(name: str, weights: Weights) -> None:
    """ValueError if ``weights``, all at once in float32, exceed the memory of this machine."""
    size, room = weights.numbers * 4, available(torch.device("cpu"))
    if size > room:
        raise ValueError(
            f"{name} has to be read whole in float32 first, which takes {size / GIB:.1f} GiB of memory, but cpu has "
            f"{room / GIB:.1f} GiB; take a smaller model"
        )


def weight_bytes(weights: Weights, dtype: torch.dtype, device: torch.device, bits: int | None = None) -> int:
    """Bytes of each tensor as it is held: as integers with a scale and a minimum of 16 bits for 32, or of ``dtype``.

    On a CPU a head of ``dtype`` is packed, so that of an embedding it is a copy.
    """
    if bits is None:
        return (weights.numbers + (weights.tied if device.type == "cpu" else 0)) * dtype.itemsize
    return sum(
        _integer_bytes(shape, bits or EXACT.get(weights.types[name], (8,))[0])
        if len(shape) == 2 and shape[1] % GROUP == 0
        else math.prod(shape) * dtype.itemsize
        for name, shape in weights.shapes.items()
    )


def _integer_bytes(shape: tuple[int, ...], bits: int) -> int:
    """Of a matrix [N, K] in whole tiles of rows."""
    return -(-shape[0] // TILE) * TILE * shape[1] * (bits + 1) // 8


def cache_bytes(lm, batch: int, capacity: int) -> int:
    """Bytes of keys and values of ``batch`` rows of ``capacity`` tokens, and of a slot for padding in each."""
    config = lm.model.config
    slots = config.num_hidden_layers * batch * (capacity + 1)
    fused = lm.fused_forward()
    dtype = lm.model.dtype if fused is None else fused.dtype
    return slots * 2 * _key_heads(config) * head_width(config) * dtype.itemsize


def check_fits(models: Sequence, batch: int, capacity: int) -> None:
    """Raise MemoryTooSmall, with sizes in GiB, if the caches of all model slots exceed the available memory."""
    needed = Counter()
    for lm in models:
        slots = capacity if lm.recorders is None else rounded(capacity)
        needed[lm.device] += cache_bytes(lm, batch, slots) // _spread(lm)
    for device, size in needed.items():
        room = available(device)
        if size > room:
            raise MemoryTooSmall(
                f"the caches of {batch} rows of {capacity} tokens need {size / GIB:.2f} GiB, but {device} has "
                f"{room / GIB:.2f} GiB; take fewer rows, shorter prompts or a smaller max_new_tokens"
            )


def available(device: torch.device) -> float:
    """Bytes that new tensors may take: free memory, torch's unused reserve, and the system's file cache."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return float("inf")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("MemAvailable"))) * 1024
    except (OSError, StopIteration):
        return _physical()


def _spread(lm) -> int:
    """Number of accelerators over which a device_map spreads the layers, and so their caches."""
    return max(1, len(set(getattr(lm.model, "hf_device_map", {}).values()) - {"cpu", "disk"}))


def _physical() -> float:
    """All memory of the machine, the fallback without /proc/meminfo; infinite if unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _key_heads(config) -> int:
    if config.model_type != "falcon":
        heads = getattr(config, "num_key_value_heads", None)
        return config.num_attention_heads if heads is None else heads
    # Falcon's new decoder repeats its keys before storing them; the old one has one key head, or all.
    return 1 if config.multi_query and not config.new_decoder_architecture else config.num_attention_heads
