"""The header of a GGUF file, read with every length checked: damaged files are refused, not followed."""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ALIGNMENT = 32
MOST = 1_000_000
"""tensors, settings and dimensions that no model has"""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Scalar settings and texts by key; of every tensor by name its shape [...], type, such as Q4_K, and place."""

    settings: dict[str, object]
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, str]
    places: dict[str, tuple[int, int]]
    """begin in the file, and length, in bytes"""
    tokenizer: str
    """a hash of all settings of the tokenizer"""

    @property
    def kinds(self) -> set[str]:
        """The types of matrices."""
        return {kind for name, kind in self.types.items() if len(self.shapes[name]) > 1}


def read_header(path: Path) -> GgufHeader:
    """ValueError, one sentence, for a file that is no GGUF file, damaged, or cut short."""
    about = path.stat()
    return _read_header(path, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=8)
def _read_header(path: Path, size: int, changed: int) -> GgufHeader:
    """Read once: to skip a vocabulary takes a quarter of a second, and many ask."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                header = Reader(data).header()
            except (struct.error, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
                raise ValueError(f"{path} is damaged or cut short in its header; download it again") from error
    end = max((begin + length for begin, length in header.places.values()), default=0)
    if end > size:
        raise ValueError(f"{path} is cut short: {size:,} of {end:,} bytes; download it again")
    return header


def read_tensors(path: Path) -> Iterator[tuple[str, tuple[int, ...], np.ndarray, object]]:
    """Name, shape [..., n], bytes [..., of a row] and ``GGMLQuantizationType`` of each tensor, one at a time."""
    from gguf import GGMLQuantizationType

    header = read_header(path)
    for name, (begin, size) in header.places.items():
        shape = header.shapes[name]
        # Pages of a mapped file would count as memory of the process for as long as it is open.
        data = np.fromfile(path, np.uint8, size, offset=begin).reshape(*shape[:-1], -1)
        yield name, shape, data, GGMLQuantizationType[header.types[name]]


class Reader:
    """Reads a header from its begin to its end. ValueError and others for what is none."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 4
        self.tokenizer = hashlib.sha256()

    def parts(self) -> tuple[dict, dict[str, tuple]]:
        """Settings by key; of every tensor by name its shape, begin and length in bytes, and type."""
        version, tensors, settings = self.take("I"), self.take("Q"), self.take("Q")
        if version not in (2, 3) or max(tensors, settings) > MOST:
            raise ValueError("absurd counts")
        known = dict(self.setting() for _ in range(settings))
        return known, dict(self.tensor() for _ in range(tensors))

    def header(self) -> GgufHeader:
        known, tensors = self.parts()
        step = known.get("general.alignment", ALIGNMENT)
        start = -(-self.at // step) * step
        shapes = {name: shape for name, (shape, *_) in tensors.items()}
        types = {name: kind.name for name, (*_, kind) in tensors.items()}
        places = {name: (start + begin, size) for name, (_, begin, size, _) in tensors.items()}
        return GgufHeader(known, shapes, types, places, self.tokenizer.hexdigest())

    def setting(self) -> tuple[str, object]:
        begin, key = self.at, self.text()
        value = self.value(self.take("I"))
        if key.startswith("tokenizer."):
            self.tokenizer.update(self.data[begin : self.at])
        return key, value

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
