"""Codes of weights, as files hold them, in the order in which products read them: one compiled pass over a matrix.

Four neighbouring codes are a word of 32 bits, so that a group of 32 is 8 words whatever its format. Layouts of the
blocks are llama.cpp's (ggml-common.h). numba compiles at the first use (seconds; cached beside this file).
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from torch import Tensor

from decoding.kernels.tile_ir import GROUP, TILE

FORMATS = ("codes", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0")
"""A byte a code, and GGUF's."""
_CODES, _Q4_0, _Q4_1, _Q4_K, _Q5_0, _Q5_1, _Q5_K, _Q6_K, _Q8_0 = range(len(FORMATS))
_NIBBLES, _PAIRS, _BITS = np.uint32(0x0F0F0F0F), np.uint32(0x03030303), np.uint32(0x01010101)
_SIXTEEN, _SIGNS = np.uint32(0x10101010), np.uint32(0x80808080)


def pack(rows: Tensor, groups: int, bits: int, kind: str = "codes") -> Tensor:
    """uint8 [N / 16, groups, 64 * bits] of ``rows`` uint8 [N, bytes], blocks of the format ``kind``; a last tile is
    filled with zeros. Codes must be below 2**bits: those of Q5_0 are moved to the middle of 6 bits, those of Q8_0 of 8.
    """
    tiles = -(-len(rows) // TILE)
    stored = torch.empty(tiles, groups, 64 * bits, dtype=torch.uint8)
    what = FORMATS.index(kind), bits, rows.contiguous().numpy(), stored.numpy().view(np.uint32)
    _shared(tiles, lambda begin, end: _pack(*what, begin, end))
    return stored


CENTRED = {"Q5_0": 32, "Q6_K": 32, "Q8_0": 128}
"""Formats without minima, and the code that stands for 0 as ``pack`` reads it."""


def nearest(rows: Tensor, first: Tensor, second: Tensor, most: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [N, K] up to ``most``, scales and minima [N, K / 32], nearest to blocks of a ``CENTRED`` kind.

    ``rows`` as for ``pack``; ``first`` and ``second`` [N, K / 32] are their scales, of the halves of a group. Each 32
    neighbours lie between their ends; scales and minima are float16 numbers.
    """
    what = FORMATS.index(kind), CENTRED[kind], rows.contiguous().numpy()
    scales = torch.stack([first, second], -1).float().contiguous().numpy()
    low, high = torch.empty(2, *first.shape)
    _shared(len(rows), lambda begin, end: _ends(*what, scales, low.numpy(), high.numpy(), begin, end))
    low, scale = (value.half().float() for value in (low, (high - low) / most))
    codes = torch.empty(len(rows), GROUP * first.shape[1], dtype=torch.uint8)
    to = scale.clamp_min(1e-30).numpy(), low.numpy(), np.float32(most), codes.numpy()
    _shared(len(rows), lambda begin, end: _nearest(*what, scales, *to, begin, end))
    return codes, scale, low


def _shared(work: int, part) -> None:
    """``part(begin, end)`` on each of torch's threads."""
    threads = torch.get_num_threads()
    ends = [work * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, ends[:-1], ends[1:]))


@njit(inline="always")
def _word(row, at):
    return (
        np.uint32(row[at])
        | np.uint32(row[at + 1]) << np.uint32(8)
        | np.uint32(row[at + 2]) << np.uint32(16)
        | np.uint32(row[at + 3]) << np.uint32(24)
    )


@njit(inline="always")
def _nibbles(row, at, words):
    """Codes in the low halves of 16 bytes, then those in the high ones."""
    for s in range(4):
        word = _word(row, at + 4 * s)
        words[s], words[s + 4] = word & _NIBBLES, word >> np.uint32(4) & _NIBBLES


@njit(inline="always")
def _add_fifth(bits, words):
    """Bit i of ``bits``, for code i, in place 4."""
    for s in range(8):
        four = bits >> np.uint32(4 * s)
        spread = four & np.uint32(1) | (four & np.uint32(2)) << np.uint32(7)
        spread |= (four & np.uint32(4)) << np.uint32(14) | (four & np.uint32(8)) << np.uint32(21)
        words[s] |= spread << np.uint32(4)


@njit(inline="always")
def _group(kind, row, group, words):
    """The codes of one group of a row as 8 ``words``."""
    block, part = group // 8, group % 8  # of 256 columns
    if kind == _CODES:
        for s in range(8):
            words[s] = _word(row, 32 * group + 4 * s)
    elif kind == _Q4_0:
        _nibbles(row, 18 * group + 2, words)
    elif kind == _Q4_1:
        _nibbles(row, 20 * group + 4, words)
    elif kind == _Q5_0:
        _nibbles(row, 22 * group + 6, words)
        _add_fifth(_word(row, 22 * group + 2), words)
        for s in range(8):
            words[s] += _SIXTEEN
    elif kind == _Q5_1:
        _nibbles(row, 24 * group + 8, words)
        _add_fifth(_word(row, 24 * group + 4), words)
    elif kind == _Q8_0:
        for s in range(8):
            words[s] = _word(row, 34 * group + 2 + 4 * s) ^ _SIGNS
    elif kind == _Q4_K:
        for s in range(8):
            word = _word(row, 144 * block + 16 + 32 * (part // 2) + 4 * s)
            words[s] = word >> np.uint32(4 * (part % 2)) & _NIBBLES
    elif kind == _Q5_K:
        for s in range(8):
            word = _word(row, 176 * block + 48 + 32 * (part // 2) + 4 * s)
            upper = _word(row, 176 * block + 16 + 4 * s) >> np.uint32(part) & _BITS
            words[s] = word >> np.uint32(4 * (part % 2)) & _NIBBLES | upper << np.uint32(4)
    elif kind == _Q6_K:
        half, quarter = part // 4, part % 4
        for s in range(8):
            word = _word(row, 210 * block + 64 * half + 32 * (quarter % 2) + 4 * s)
            upper = _word(row, 210 * block + 128 + 32 * half + 4 * s) >> np.uint32(2 * quarter) & _PAIRS
            words[s] = word >> np.uint32(4 * (quarter // 2)) & _NIBBLES | upper << np.uint32(4)


@njit(nogil=True, cache=True)
def _pack(kind, bits, rows, stored, begin, end):
    """Tiles from ``begin`` to before ``end``: by step of 4 columns, then by row; ``integer_ir`` reads them so."""
    words = np.empty((TILE, 8), np.uint32)
    for tile in range(begin, end):
        for group in range(stored.shape[1]):
            for row in range(TILE):
                if TILE * tile + row < len(rows):
                    _group(kind, rows[TILE * tile + row], group, words[row])
                else:
                    words[row] = 0
            place = stored[tile, group]
            if bits == 8:
                for s in range(8):
                    for row in range(TILE):
                        place[TILE * s + row] = words[row, s]
                continue
            for s in range(4):
                for row in range(TILE):
                    low, high = words[row, s] & _NIBBLES, words[row, s + 4] & _NIBBLES
                    place[TILE * s + row] = low | high << np.uint32(4)
            if bits == 6:
                for half in range(2):
                    for row in range(TILE):
                        upper = np.uint32(0)
                        for s in range(4):
                            upper |= (words[row, 4 * half + s] >> np.uint32(4) & _PAIRS) << np.uint32(2 * s)
                        place[TILE * (4 + half) + row] = upper


@njit(inline="always")
def _value(words, column, middle, scales):
    code = words[column // 4] >> np.uint32(8 * (column % 4)) & np.uint32(255)
    return np.float32(np.int32(code) - middle) * scales[column // 16]


@njit(nogil=True, cache=True)
def _ends(kind, middle, rows, scales, low, high, begin, end):
    """The least and the greatest of each 32 weights."""
    words = np.empty(8, np.uint32)
    for row in range(begin, end):
        for group in range(low.shape[1]):
            _group(kind, rows[row], group, words)
            least = most = _value(words, 0, middle, scales[row, group])
            for column in range(1, 32):
                value = _value(words, column, middle, scales[row, group])
                least, most = min(least, value), max(most, value)
            low[row, group], high[row, group] = least, most


@njit(nogil=True, cache=True)
def _nearest(kind, middle, rows, scales, step, low, most, codes, begin, end):
    """The codes of ``step`` and ``low`` nearest to the weights."""
    words = np.empty(8, np.uint32)
    for row in range(begin, end):
        for group in range(low.shape[1]):
            _group(kind, rows[row], group, words)
            for column in range(32):
                value = _value(words, column, middle, scales[row, group])
                code = np.rint((value - low[row, group]) / step[row, group])
                codes[row, 32 * group + column] = np.uint8(min(max(code, np.float32(0)), most))
