"""Blocks of a GGUF file as codes, scales and minima: where they have such a form, without another rounding."""

import numpy as np
import torch
from torch import Tensor

from decoding.kernels.integer_products import GROUP, TILE, IntegerMatrix
from decoding.kernels.quantized import CHUNK, rounded

FLOATS = ("F64", "F32", "F16", "BF16")


def matrix(data: np.ndarray, kind, bits: int) -> IntegerMatrix:
    """The matrix [N, K] whose rows are ``data`` [N, ...] of the ``GGMLQuantizationType`` ``kind``.

    With ``bits`` 4, what has no form in 4 bits takes 8: Q5 and Q8_0 as they are, others rounded within 32 neighbours,
    to a step of at most a quarter of Q6_K's. Float weights are rounded to ``bits``. Raises ValueError unless 32
    divides K.
    """
    from gguf import dequantize

    exact = EXACT.get(kind.name)
    width = 8 if bits == 8 or not (kind.name in FLOATS or (exact and exact[0] == 4)) else 4
    step = max(1, CHUNK // max(1, data[0].size) // TILE) * TILE
    parts = []
    for begin in range(0, len(data), step):
        rows = np.array(data[begin : begin + step])
        if exact is None:
            parts.append(rounded(torch.from_numpy(np.array(dequantize(rows, kind), np.float32)), width))
        else:
            parts.append(IntegerMatrix.pack(*exact[1](torch.from_numpy(rows)), width))
    return IntegerMatrix(torch.cat([p.codes for p in parts]), torch.cat([p.scales for p in parts]), len(data))


def dense(data: np.ndarray, kind, dtype: torch.dtype) -> Tensor:
    """The same as a tensor of ``dtype``, unpacked some rows at a time."""
    from gguf import dequantize

    step = max(1, CHUNK // max(1, data[0].size))
    chunks = (data[begin : begin + step] for begin in range(0, len(data), step))
    return torch.cat([torch.from_numpy(np.array(dequantize(chunk, kind), np.float32)).to(dtype) for chunk in chunks])


def _half(blocks: Tensor, at: int) -> Tensor:
    return blocks[..., at : at + 2].contiguous().view(torch.float16)[..., 0].float()


def _nibbles(stored: Tensor) -> Tensor:
    return torch.cat([stored & 15, stored >> 4], -1)


def _fifth(stored: Tensor) -> Tensor:
    """Bit i of 4 bytes, for code i, in place 4."""
    return ((stored[..., :, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten(-2) << 4


def _q4_0(rows: Tensor):
    blocks = rows.unflatten(1, (-1, 18))
    scale = _half(blocks, 0)
    return _nibbles(blocks[..., 2:]).flatten(1), scale, -8 * scale


def _q4_1(rows: Tensor):
    blocks = rows.unflatten(1, (-1, 20))
    return _nibbles(blocks[..., 4:]).flatten(1), _half(blocks, 0), _half(blocks, 2)


def _q5_0(rows: Tensor):
    blocks = rows.unflatten(1, (-1, 22))
    scale = _half(blocks, 0)
    return (_nibbles(blocks[..., 6:]) | _fifth(blocks[..., 2:6])).flatten(1), scale, -16 * scale


def _q5_1(rows: Tensor):
    blocks = rows.unflatten(1, (-1, 24))
    return (_nibbles(blocks[..., 8:]) | _fifth(blocks[..., 4:8])).flatten(1), _half(blocks, 0), _half(blocks, 2)


def _q8_0(rows: Tensor):
    blocks = rows.unflatten(1, (-1, 34))
    scale = _half(blocks, 0)
    return (blocks[..., 2:] ^ 128).flatten(1), scale, -128 * scale


def _scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima [N, K / 32] of blocks of 256 that begin as those of Q4_K and Q5_K."""
    packed = blocks[..., 4:16]
    low, high, both = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scale = torch.cat([low & 63, (both & 15) | (low >> 6 << 4)], -1)
    minimum = torch.cat([high & 63, (both >> 4) | (high >> 6 << 4)], -1)
    return (scale * _half(blocks, 0)[..., None]).flatten(1), (minimum * -_half(blocks, 2)[..., None]).flatten(1)


def _q4_k(rows: Tensor):
    blocks = rows.unflatten(1, (-1, 144))
    return _nibbles(blocks[..., 16:].unflatten(-1, (4, GROUP))).flatten(1), *_scales(blocks)


def _q5_k(rows: Tensor):
    blocks = rows.unflatten(1, (-1, 176))
    codes = _nibbles(blocks[..., 48:].unflatten(-1, (4, GROUP))).unflatten(-1, (2, GROUP)).flatten(2, 3)
    high = (blocks[..., None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None]) & 1
    return (codes | high << 4).flatten(1), *_scales(blocks)


EXACT = {
    "Q4_0": (4, _q4_0),
    "Q4_1": (4, _q4_1),
    "Q4_K": (4, _q4_k),
    "Q5_0": (8, _q5_0),
    "Q5_1": (8, _q5_1),
    "Q5_K": (8, _q5_k),
    "Q8_0": (8, _q8_0),
}
"""Types with one scale and one minimum for 32 weights: their bits, and how rows become codes, scales and minima."""
