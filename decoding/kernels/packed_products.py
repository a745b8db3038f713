"""Linear layers whose weights oneDNN has packed for the CPU.

PyTorch multiplies one row with MKL's gemv, and a few rows with a gemm that packs the weights anew each time. With
weights packed once, reading 5 tokens costs about as much as reading 1: that makes verifying a draft cheap.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DTYPES = (torch.float32, torch.bfloat16)
EXACT = 16  # products of up to this many rows, the sizes of decoding, are not padded


class Packed:
    """A product with ``weight`` [out, in], kept only in packed form where oneDNN can pack it."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias = (_packed(weight), bias) if _can_pack(weight) else (weight, bias)
        self.packed = self.weight is not weight

    def __call__(self, x: Tensor) -> Tensor:
        return _product(x, self.weight, self.bias) if self.packed else F.linear(x, self.weight, self.bias)


class PackedLinear(nn.Linear):
    """An ``nn.Linear`` that multiplies with a packed copy of its weight, renewed when the weight has changed.

    The weight itself stays (parameters, tying, saving), so it is in memory twice.
    """

    _packed: Tensor | None = None
    _packed_from: tuple[int, int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if not x.is_cpu or not _dense(weight) or (torch.is_grad_enabled() and x.requires_grad):
            return F.linear(x, weight, self.bias)
        version = (weight.data_ptr(), weight._version)
        if self._packed_from != version:
            self._packed = _packed(weight.detach())
            self._packed_from = version
        return _product(x, self._packed, self.bias)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_packed")}


def pack(model: nn.Module) -> None:
    """Turn the ``nn.Linear`` layers of a CPU model into ``PackedLinear``, where oneDNN is available.

    Quantised layers are left alone.
    """
    for module in model.modules():
        if type(module) is nn.Linear and _can_pack(module.weight):
            module.__class__ = PackedLinear


def _can_pack(weight: Tensor) -> bool:
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return known and weight.device.type == "cpu" and _dense(weight)


def _packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())


def _product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.shape[:-1].numel()
    if not (missing := padded(rows) - rows):
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    x_padded = F.pad(x.reshape(rows, -1), (0, 0, 0, missing))
    product = torch.ops.mkldnn._linear_pointwise(x_padded, packed, bias, "none", [], "")
    return product[:rows].view(*x.shape[:-1], -1)


def padded(rows: int) -> int:
    """Rows multiplied for ``rows``: above ``EXACT``, the next of eight sizes between two powers of 2.

    oneDNN compiles a product for every number of rows, and caches up to 1,024 of them at half a megabyte each, with
    PyTorch's layer above it: texts of all lengths would fill that for hours, and every new length would be compiled.
    """
    step = 1 if rows <= EXACT else 2 ** ((rows - 1).bit_length() - 4)
    return -(-rows // step) * step


def _dense(weight: Tensor) -> bool:
    """Whether oneDNN can pack ``weight``: a plain tensor, of bfloat16 only with hardware support.

    Quantised weights are tensor subclasses, whose dtype is not that of their storage.
    """
    if weight.dtype == torch.bfloat16 and not _bfloat16():
        return False
    return weight.dtype in DTYPES and type(weight) in (nn.Parameter, Tensor)


@cache
def _bfloat16() -> bool:
    """Whether oneDNN supports bfloat16; cached, for every product of every layer needs it."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
