"""Blocks of a GGUF file as codes, scales and minima: where they have such a form, without another rounding."""

import numpy as np
import torch
from torch import Tensor

from decoding.kernels.integer_products import TILE, IntegerMatrix
from decoding.kernels.packing import CENTRED, nearest
from decoding.kernels.quantized import CHUNK, rounded

OWN = 0
"""In place of a number of bits: as many as the type of each matrix has in the file."""


def matrix(data: np.ndarray, kind, bits: int) -> IntegerMatrix:
    """The matrix [N, K] whose rows are ``data`` [N, ...] of the ``GGMLQuantizationType`` ``kind``.

    With ``OWN`` bits it keeps those of its type, 4, 6 or 8 (``EXACT``); a type that is not in that table takes 8. With
    4 or 8 it keeps its codes if they have as many or fit a byte, else it is rounded within 32 neighbours.
    Raises ValueError unless 32 divides K.
    """
    from gguf import dequantize

    own, scales = EXACT.get(kind.name, (None, None))
    width = bits or own or 8
    exact = own == width or (own == 4 and width == 8)
    step = max(1, CHUNK // max(1, data[0].size) // TILE) * TILE
    parts = []
    for begin in range(0, len(data), step):
        rows = np.array(data[begin : begin + step])
        blocks = torch.from_numpy(rows)
        if exact:
            parts.append(IntegerMatrix.pack(blocks, *scales(blocks), width, kind.name))
        elif kind.name in CENTRED:
            first, second = scales(blocks)
            halves = first, first if own == 8 else second
            parts.append(IntegerMatrix.pack(*nearest(blocks, *halves, 2**width - 1, kind.name), width))
        else:
            parts.append(rounded(torch.from_numpy(np.array(dequantize(rows, kind), np.float32)), width))
    return IntegerMatrix.stacked(parts, len(data))


def dense(data: np.ndarray, kind, dtype: torch.dtype) -> Tensor:
    """The same as a tensor of ``dtype``, unpacked some rows at a time."""
    from gguf import dequantize

    step = max(1, CHUNK // max(1, data[0].size))
    chunks = (data[begin : begin + step] for begin in range(0, len(data), step))
    return torch.cat([torch.from_numpy(np.array(dequantize(chunk, kind), np.float32)).to(dtype) for chunk in chunks])


def _half(blocks: Tensor, at: int) -> Tensor:
    return blocks[..., at : at + 2].contiguous().view(torch.float16)[..., 0].float()


def _q4_0(rows: Tensor) -> tuple[Tensor, Tensor]:
    scale = _half(rows.unflatten(1, (-1, 18)), 0)
    return scale, -8 * scale


def _q4_1(rows: Tensor) -> tuple[Tensor, Tensor]:
    blocks = rows.unflatten(1, (-1, 20))
    return _half(blocks, 0), _half(blocks, 2)


def _q5_0(rows: Tensor) -> tuple[Tensor, Tensor]:
    scale = _half(rows.unflatten(1, (-1, 22)), 0)
    return scale, scale


def _q5_1(rows: Tensor) -> tuple[Tensor, Tensor]:
    blocks = rows.unflatten(1, (-1, 24))
    return _half(blocks, 0), _half(blocks, 2)


def _q8_0(rows: Tensor) -> tuple[Tensor, Tensor]:
    scale = _half(rows.unflatten(1, (-1, 34)), 0)
    return scale, -128 * scale


def _scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima [N, K / 32] of blocks of 256 that begin as those of Q4_K and Q5_K."""
    packed = blocks[..., 4:16]
    low, high, both = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scale = torch.cat([low & 63, (both & 15) | (low >> 6 << 4)], -1)
    minimum = torch.cat([high & 63, (both >> 4) | (high >> 6 << 4)], -1)
    return (scale * _half(blocks, 0)[..., None]).flatten(1), (minimum * -_half(blocks, 2)[..., None]).flatten(1)


def _q4_k(rows: Tensor) -> tuple[Tensor, Tensor]:
    return _scales(rows.unflatten(1, (-1, 144)))


def _q5_k(rows: Tensor) -> tuple[Tensor, Tensor]:
    return _scales(rows.unflatten(1, (-1, 176)))


def _q6_k(rows: Tensor) -> tuple[Tensor, Tensor]:
    blocks = rows.unflatten(1, (-1, 210))
    scales = blocks[..., 192:208].contiguous().view(torch.int8).float() * _half(blocks, 208)[..., None]
    return scales.unflatten(-1, (8, 2)).flatten(1, 2).unbind(-1)


EXACT = {
    "Q4_0": (4, _q4_0),
    "Q4_1": (4, _q4_1),
    "Q4_K": (4, _q4_k),
    "Q5_0": (6, _q5_0),
    "Q5_1": (8, _q5_1),
    "Q5_K": (8, _q5_k),
    "Q6_K": (6, _q6_k),
    "Q8_0": (8, _q8_0),
}
"""Types with such a form: their bits, and the two numbers [N, K / 32] for the groups of rows (``IntegerMatrix``)."""
