"""One product for several linear layers of the same input, with their weights in memory once."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from decoding.kernels.integer_products import TILE, IntegerMatrix
from decoding.kernels.packed_products import PackedLinear
from decoding.kernels.quantized import IntegerLinear


class Concatenation(nn.Module):
    """Several products of one input, side by side: for layers of different kinds, as in a file of mixed bits."""

    def __init__(self, products: list[nn.Module]):
        super().__init__()
        self.products = nn.ModuleList(products)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([product(x) for product in self.products], -1)


def joined(parts: Sequence[nn.Module], order: Sequence[Tensor | None] | None = None) -> nn.Module:
    """A module whose output is the outputs of the linear ``parts`` side by side, those of part i in ``order[i]``.

    From then on the parts hold no weights of their own but share those of the result; their own forward and ``weight``
    stay what they were. Parts that cannot be one product become several in one module.
    """
    pairs = list(zip(parts, order or [None] * len(parts), strict=True))
    products = [_one(*map(list, zip(*same, strict=True))) for _, same in groupby(pairs, lambda pair: _kind(pair[0]))]
    return products[0] if len(products) == 1 else Concatenation(products)


def _kind(part: nn.Module):
    """Equal for layers that one product can serve."""
    if isinstance(part, IntegerLinear):
        # Only whole tiles can be put behind one another.
        return part.matrix.bits if part.out_features % TILE == 0 else part
    return type(part), part.weight_dtype if isinstance(part, PackedLinear) else part.weight.dtype


def _one(parts: list[nn.Module], order: list[Tensor | None]) -> nn.Module:
    if isinstance(parts[0], IntegerLinear):
        return _integer(parts, order)
    weight = torch.cat([_ordered(part.dense if isinstance(part, PackedLinear) else part.weight, rows)
                        for part, rows in zip(parts, order, strict=True)])  # fmt: skip
    bias = _bias(parts, order)
    with torch.device("meta"):
        whole = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    whole.weight = nn.Parameter(weight.detach(), requires_grad=False)
    whole.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    if isinstance(parts[0], PackedLinear):
        PackedLinear.take(whole)
    begin = 0
    for part, rows in zip(parts, order, strict=True):
        if isinstance(part, PackedLinear):
            part.share(whole, begin, _inverse(rows))
        elif rows is None:
            part.weight.data = whole.weight[begin : begin + part.out_features]
        begin += part.out_features
    return whole


def _integer(parts: list[IntegerLinear], order: list[Tensor | None]) -> IntegerLinear:
    pairs = list(zip(parts, order, strict=True))
    matrices = [_reordered(part.matrix, _from(part, rows)) for part, rows in pairs]
    whole = IntegerLinear(IntegerMatrix.stacked(matrices, sum(m.outputs for m in matrices)), _bias(parts, order))
    codes, scales = whole.matrix.codes, whole.matrix.scales
    begin = 0
    for (part, rows), matrix in zip(pairs, matrices, strict=True):
        end = begin + len(matrix.codes)
        bias = None if part.bias is None else _ordered(part.bias, rows)
        part.hold(IntegerMatrix(codes[begin:end], scales[begin:end], matrix.outputs), bias, _inverse(rows))
        begin = end
    return whole


def _from(part: IntegerLinear, rows: Tensor | None) -> Tensor | None:
    """The rows of a part's matrix that are its outputs ``rows``."""
    return rows if part.restore is None else _ordered(part.restore, rows)


def _reordered(matrix: IntegerMatrix, rows: Tensor | None) -> IntegerMatrix:
    if rows is None:
        return matrix
    tile, row = rows // TILE, rows % TILE
    codes = matrix.codes.unflatten(-1, (matrix.bits, TILE, 4))[tile, :, :, row]  # [N, K / 32, bits, 4]
    scales = matrix.scales[tile, :, :, row]  # [N, K / 32, 2]
    codes = codes.unflatten(0, (-1, TILE)).permute(0, 2, 3, 1, 4).reshape(matrix.codes.shape)
    return IntegerMatrix(codes, scales.unflatten(0, (-1, TILE)).permute(0, 2, 3, 1).contiguous(), matrix.outputs)


def _bias(parts: list[nn.Module], order: list[Tensor | None]) -> Tensor | None:
    if all(part.bias is None for part in parts):
        return None
    zeros = [torch.zeros(part.out_features) if part.bias is None else part.bias.detach() for part in parts]
    return torch.cat([_ordered(bias, rows) for bias, rows in zip(zeros, order, strict=True)])


def _ordered(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values[rows]


def _inverse(rows: Tensor | None) -> Tensor | None:
    return None if rows is None else rows.argsort()
