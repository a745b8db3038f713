"""The header of a GGUF file, read with every length checked: damaged files are refused, not followed."""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ALIGNMENT = 32
MOST = 1_000_000
"""tensors, settings and dimensions that no model has"""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Scalar settings and texts by key, the shape [...] of every tensor by name, and the types of matrices."""

    settings: dict[str, object]
    shapes: dict[str, tuple[int, ...]]
    kinds: frozenset[str]


def read_header(path: Path) -> GgufHeader:
    """ValueError, one sentence, for a file that is no GGUF file, damaged, or cut short."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                header, end = Reader(data).header()
            except (struct.error, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
                raise ValueError(f"{path} is damaged or cut short in its header; download it again") from error
    if end > size:
        raise ValueError(f"{path} is cut short: {size:,} of {end:,} bytes; download it again")
    return header


def read_tensors(path: Path) -> Iterator[tuple[str, tuple[int, ...], np.ndarray, object]]:
    """Name, shape [..., n], bytes [..., of a row] and ``GGMLQuantizationType`` of each tensor, one at a time."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = Reader(data)
        known, places = reader.parts()
        step = known.get("general.alignment", ALIGNMENT)
        start = -(-reader.at // step) * step
    for name, (shape, begin, size, kind) in places.items():
        # Pages of a mapped file would count as memory of the process for as long as it is open.
        yield name, shape, np.fromfile(path, np.uint8, size, offset=start + begin).reshape(*shape[:-1], -1), kind


class Reader:
    """Reads a header from its begin to its end. ValueError and others for what is none."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 4

    def parts(self) -> tuple[dict, dict[str, tuple]]:
        """Settings by key; of every tensor by name its shape, begin and length in bytes, and type."""
        version, tensors, settings = self.take("I"), self.take("Q"), self.take("Q")
        if version not in (2, 3) or max(tensors, settings) > MOST:
            raise ValueError("absurd counts")
        known = {self.text(): self.value(self.take("I")) for _ in range(settings)}
        return known, dict(self.tensor() for _ in range(tensors))

    def header(self) -> tuple[GgufHeader, int]:
        """The header and the number of bytes that the file must have."""
        known, places = self.parts()
        step = known.get("general.alignment", ALIGNMENT)
        start = -(-self.at // step) * step
        end = max((start + begin + size for _, begin, size, _ in places.values()), default=start)
        kinds = frozenset(kind.name for shape, _, _, kind in places.values() if len(shape) > 1)
        return GgufHeader(known, {name: shape for name, (shape, *_) in places.items()}, kinds), end

    def take(self, kind: str):
        (value,) = struct.unpack_from("<" + kind, self.data, self.at)
        self.at += struct.calcsize("<" + kind)
        return value

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise ValueError("past the end")

    def text(self) -> str:
        size = self.take("Q")
        begin = self.at
        self.skip(size)
        return self.data[begin : self.at].decode()

    def value(self, kind: int):
        """A scalar or a text; an array is skipped."""
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.take(SCALARS[kind])
        inner, count = self.take("I"), self.take("Q")
        if inner in SCALARS:
            return self.skip(count * struct.calcsize("<" + SCALARS[inner]))
        for _ in range(count):
            if inner == STRING:
                self.skip(self.take("Q"))
            else:
                self.value(inner)
        return None

    def tensor(self) -> tuple[str, tuple]:
        """Name, shape, where its bytes begin and how many they are, and the ``GGMLQuantizationType``."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name, dimensions = self.text(), self.take("I")
        if dimensions > 8:
            raise ValueError("absurd dimensions")
        shape = tuple(self.take("Q") for _ in range(dimensions))[::-1]
        kind = GGMLQuantizationType(self.take("I"))
        block, size = GGML_QUANT_SIZES[kind]
        return name, (shape, self.take("Q"), math.prod(shape) // block * size, kind)
