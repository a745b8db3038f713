"""The settings of a GGUF file for transformers, which itself takes 10 seconds for a vocabulary of 150,000 tokens."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from decoding.models.gguf_header import ARRAY, SCALARS, STRING, Reader

LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Field:
    """A setting as ``gguf.ReaderField`` holds it: the bytes of texts, or numbers in sequences of one."""

    parts: Sequence[bytes | tuple]
    types: list[int]

    @property
    def data(self) -> range:
        """The indices of the values among ``parts``."""
        return range(len(self.parts))


class MetadataReader:
    """What transformers reads of ``gguf.GGUFReader`` for a config or a tokenizer: settings, and names of tensors."""

    def __init__(self, path: str | Path, mode: str = "r"):
        with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self.fields, places = _FieldReader(data).parts()
        self.tensors = [SimpleNamespace(name=name) for name in places]


@contextmanager
def quick_metadata() -> Iterator[None]:
    """Let transformers read GGUF files by ``MetadataReader``; never while it reads weights."""
    import gguf

    slow = gguf.GGUFReader
    gguf.GGUFReader = MetadataReader
    try:
        yield
    finally:
        gguf.GGUFReader = slow


class _FieldReader(Reader):
    """Reads every setting as a ``Field``, arrays too."""

    def value(self, kind: int) -> Field:
        if kind == STRING:
            return Field(self._texts(1), [kind])
        if kind != ARRAY:
            return Field([(self.take(SCALARS[kind]),)], [kind])
        inner, count = self.take("I"), self.take("Q")
        if inner == STRING:
            return Field(self._texts(count), [kind, inner])
        numbers = struct.unpack_from(f"<{count}{SCALARS[inner]}", self.data, self.at)
        self.skip(count * struct.calcsize("<" + SCALARS[inner]))
        return Field([(number,) for number in numbers], [kind, inner])

    def _texts(self, count: int) -> list[bytes]:
        data, at, found = self.data, self.at, []
        for _ in range(count):
            begin = at + LENGTH.size
            at = begin + LENGTH.unpack_from(data, at)[0]
            found.append(data[begin:at])
        self.at = at
        self.skip(0)  # raises past the end
        return found
