"""What a name of a dtype means for the weights of a model on a device."""

import torch

from decoding.kernels.integer_products import available
from decoding.models.gguf_blocks import FLOATS
from decoding.models.gguf_header import read_header
from decoding.models.sources import Source

INTEGERS = {"int4": 4, "int8": 8}


def chosen(dtype: str | torch.dtype, device: torch.device) -> tuple[torch.dtype, int | None]:
    """The floating dtype of activations, and the bits of matrices if they are integers.

    Raises ValueError for another name, and for integers on a machine that cannot multiply them.
    """
    if dtype == "auto":
        return torch.float32, None
    if dtype in INTEGERS:
        if device.type != "cpu":
            raise ValueError(f"{dtype} weights run on the CPU, not on {device}; take bfloat16 there")
        if not available():
            raise ValueError(f"{dtype} weights need an x86 processor with AVX2 and torch on OpenMP; take bfloat16 here")
        return torch.float32, INTEGERS[dtype]
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(
            f"dtype must be auto, int4, int8, or a torch floating type such as float32 or bfloat16, not {dtype!r}"
        )
    return kind, None


def automatic(source: Source, device: torch.device) -> tuple[torch.dtype, int | None]:
    """What auto means: int4 of a quantised GGUF file where that can be multiplied, of others float32."""
    if source.gguf is None or device.type != "cpu" or not available():
        return torch.float32, None
    kinds = read_header(source.folder / source.gguf).kinds
    return torch.float32, 4 if kinds - set(FLOATS) else None
