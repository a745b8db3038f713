"""Linear layers whose weights oneDNN has packed for the CPU.

PyTorch multiplies one row with MKL's gemv, and a few rows with a gemm that packs the weights anew each time. With
weights packed once, reading 5 tokens costs about as much as reading 1: that makes verifying a draft cheap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DTYPES = (torch.float32, torch.bfloat16)
EXACT = 16  # products of up to this many rows, the sizes of decoding, are not padded


class PackedLinear(nn.Linear):
    """An ``nn.Linear`` that holds its weight in packed form, and in no other until it is asked for.

    ``weight`` unpacks it and makes it a parameter again, which may be changed and trained; its packed form is then
    renewed when it has changed, and both are in memory. Saving and copying unpack for a moment. A weight that another
    module uses too, as an embedding does, stays a parameter. ``share``: the rows are part of another packed layer.
    """

    _packed: Tensor | None = None
    _packed_from: tuple[int, int] | None = None
    _shared: tuple[PackedLinear, int, Tensor | None] | None = None

    @classmethod
    def take(cls, layer: nn.Linear, keep: bool = False) -> None:
        """Make ``layer`` one of these; with ``keep`` its weight stays a parameter too.

        It stays one in any case if oneDNN cannot pack it, as bfloat16 where the processor has no products of it.
        """
        layer.__class__ = cls
        if not _can_pack(layer.weight):
            return
        layer._pack()
        if not keep:
            layer._parameters.pop("weight")

    def share(self, whole: PackedLinear, begin: int, restore: Tensor | None) -> None:
        """Hold nothing, but use rows ``begin`` to ``begin + out_features`` of ``whole``; row ``restore[i]`` is i."""
        self._parameters.pop("weight", None)
        self._packed = self._packed_from = None
        self._shared = whole, begin, restore

    @property
    def weight_dtype(self) -> torch.dtype:
        if "weight" in self._parameters:
            return self._parameters["weight"].dtype
        return self._packed.dtype if self._shared is None else self._shared[0].weight_dtype

    @property
    def dense(self) -> Tensor:
        """The weight [out, in], perhaps a copy: to be read, not to be changed."""
        if "weight" in self._parameters:
            return self._parameters["weight"].detach()
        if self._shared is None:
            return self._packed.to_dense()
        whole, begin, restore = self._shared
        rows = whole.dense[begin : begin + self.out_features]
        return rows if restore is None else rows[restore]

    def __getattr__(self, name: str):
        if name == "weight" and "weight" not in self._parameters:
            with torch.inference_mode(False):
                weight = self._parameters["weight"] = nn.Parameter(self.dense.clone())
            return weight
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        own = "weight" in self._parameters
        if not x.is_cpu or (own and not _dense(self.weight)) or (torch.is_grad_enabled() and x.requires_grad):
            return F.linear(x, self.weight, self.bias)
        if own:
            if self._packed_from != _version(self.weight):
                self._pack()
        elif self._shared is not None:
            whole, begin, restore = self._shared
            y = whole(x)[..., begin : begin + self.out_features]
            return y if restore is None else y[..., restore]
        return _product(x, self._packed, self.bias)

    def _pack(self) -> None:
        weight = self._parameters["weight"]
        self._packed, self._packed_from = _packed(weight.detach()), _version(weight)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if "weight" not in self._parameters:
            destination[prefix + "weight"] = self.dense

    def _load_from_state_dict(self, *arguments):
        self.weight  # noqa: B018 - a parameter, to be filled
        super()._load_from_state_dict(*arguments)

    def _apply(self, fn, recurse=True):
        self.weight  # noqa: B018 - a parameter, to be moved
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        state = {
            name: value for name, value in self.__dict__.items() if name not in ("_packed", "_packed_from", "_shared")
        }
        if "weight" not in self._parameters:
            state["_parameters"] = {"weight": nn.Parameter(self.dense)} | self._parameters
        return state


def pack(model: nn.Module) -> None:
    """Turn the ``nn.Linear`` layers of a CPU model into ``PackedLinear``, where oneDNN is available.

    Quantised layers are left alone. Each weight is freed when it is packed, unless another module uses it.
    """
    users = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    for module in model.modules():
        if type(module) is nn.Linear and _can_pack(module.weight):
            PackedLinear.take(module, keep=users[id(module.weight)] > 1)


def weights(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """A function for each parameter of ``model``, packed ones too, by name: it returns the weight."""
    found = {name: lambda weight=weight: weight.detach() for name, weight in model.named_parameters()}
    for name, module in model.named_modules():
        # Not isinstance: an export brings a copy of this file, and may be given a model that this one has packed.
        if hasattr(module, "_packed_from") and "weight" not in module._parameters:
            found[f"{name}.weight".removeprefix(".")] = lambda module=module: module.dense
    return found


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


def _version(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version
