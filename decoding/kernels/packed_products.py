"""Linear layers whose weights oneDNN has laid out for the CPU.

PyTorch multiplies one row by a matrix with MKL's gemv, and a few rows with a gemm that lays the weights out anew each
time; laid out once, reading 5 tokens costs about as much as reading 1, which is what checking a draft lives on.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DTYPES = (torch.float32, torch.bfloat16)
EXACT = 16
"""Products of up to so many rows, which decoding is made of, are not padded."""


class Packed:
    """A product with ``weight`` [out, in], of which only the packed copy is kept."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias = (_packed(weight), bias) if _can_pack(weight) else (weight, bias)
        self.packed = self.weight is not weight

    def __call__(self, x: Tensor) -> Tensor:
        return _product(x, self.weight, self.bias) if self.packed else F.linear(x, self.weight, self.bias)


class PackedLinear(nn.Linear):
    """An ``nn.Linear`` that multiplies with a packed copy of its weight, made anew when the weight has changed.

    The weight stays where it was (parameters, tying, saving), so it is in memory twice.
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
    """Turn the ``nn.Linear`` layers of a CPU model into ``PackedLinear``; does nothing where oneDNN is missing.

    Quantised layers stay as they are.
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
    """How many rows are multiplied for ``rows``: beyond ``EXACT``, one of eight numbers between two powers of 2.

    oneDNN compiles a product for every number of rows, and it and PyTorch's layer above it keep half a megabyte of
    each, up to 1,024: texts of all lengths would fill that for hours, and every new length wait for its compiler.
    """
    step = 1 if rows <= EXACT else 2 ** ((rows - 1).bit_length() - 4)
    return -(-rows // step) * step


def _dense(weight: Tensor) -> bool:
    """What oneDNN takes: not, without AVX-512, bfloat16.

    Nor tensor types of their own, which quantised weights are, with a dtype that they only pretend to have.
    """
    if weight.dtype == torch.bfloat16 and not _bfloat16():
        return False
    return weight.dtype in DTYPES and type(weight) in (nn.Parameter, Tensor)


@cache
def _bfloat16() -> bool:
    """Asked once: every product of every layer wants to know."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
