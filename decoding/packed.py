"""Linear layers whose weights oneDNN has laid out for the CPU.

PyTorch multiplies one row by a matrix with MKL's gemv, and a few rows with a gemm that lays the weights out anew each
time; laid out once, reading 5 tokens costs about as much as reading 1, which is what checking a draft lives on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DTYPES = (torch.float32, torch.bfloat16)


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
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _dense(weight: Tensor) -> bool:
    """Not so: tensor types of their own, which quantised weights are, with a dtype they only pretend to have."""
    return weight.dtype in DTYPES and type(weight) in (nn.Parameter, Tensor)
