"""What a name of a dtype means for the weights of a model on a device."""

import json

import torch

from decoding.kernels.integer_products import available
from decoding.models.gguf_blocks import OWN
from decoding.models.gguf_header import read_header
from decoding.models.sources import Source

INTEGERS = {"file": OWN, "int4": 4, "int8": 8}
FLOATS = {"F64", "F32", "F16", "BF16"}
"""Types of a GGUF file that are not quantised."""


def chosen(dtype: str | torch.dtype, device: torch.device) -> tuple[torch.dtype, int | None]:
    """The floating dtype of activations, and the bits of matrices if they are integers.

    Raises ValueError for another name, and for integers on a machine that cannot multiply them.
    """
    if dtype == "auto":
        return torch.float32, None
    if dtype in INTEGERS:
        what = "quantised weights of a file" if dtype == "file" else f"{dtype} weights"
        if device.type != "cpu":
            raise ValueError(f"{what} run on the CPU, not on {device}; take bfloat16 there")
        if not available():
            raise ValueError(f"{what} need an x86 processor with AVX2 and torch on OpenMP; take bfloat16 here")
        return torch.float32, INTEGERS[dtype]
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(
            f"dtype must be auto, file, int4, int8, or a torch floating type such as float32 or bfloat16, not {dtype!r}"
        )
    return kind, None


def settled(dtype: str | torch.dtype, source: Source, device: torch.device) -> tuple[torch.dtype, int | None]:
    """The same of a model that has been found. ValueError for "file" unless it is a quantised GGUF file.

    "auto" is what the files hold, where the machine multiplies that faster than float32: the bits of a quantised GGUF
    file on an x86 CPU, bfloat16 on CUDA and on CPUs that have products of it, float16 on CUDA. Else it is float32.
    """
    quantised = source.gguf is not None and bool(read_header(source.folder / source.gguf).kinds - FLOATS)
    if dtype == "file" and not quantised:
        raise ValueError(f"{source.name} is not a quantised GGUF file, so it has no bits to keep; take int4 or int8")
    if dtype == "auto" and quantised and device.type == "cpu" and available():
        return torch.float32, OWN
    if dtype == "auto":
        held = _held(source)
        fast = bfloat16_is_fast(device.type) if held == torch.bfloat16 else device.type == "cuda"
        return (held if held is not None and fast else torch.float32), None
    return chosen(dtype, device)


def bfloat16_is_fast(device: str) -> bool:
    """True where bfloat16 should be faster than float32: on CUDA, and on CPUs with bfloat16 products in hardware."""
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.startswith("cuda") or (device.startswith("cpu") and native is not None and bool(native()))


def _held(source: Source) -> torch.dtype | None:
    """The floating dtype of the matrices in the files, if all of them are of one and the files say so."""
    if source.gguf is not None:
        kinds = read_header(source.folder / source.gguf).kinds
        return {"BF16": torch.bfloat16, "F16": torch.float16}.get(kinds.pop()) if len(kinds) == 1 else None
    try:
        config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
        name = config.get("dtype") or config.get("torch_dtype")
        return getattr(torch, name) if name in ("bfloat16", "float16") else None
    except (OSError, ValueError, AttributeError):
        return None  # what is wrong with it is said when it is read
