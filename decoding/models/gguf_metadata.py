"""The settings of a GGUF file for transformers, which itself takes 10 seconds for a vocabulary of 150,000 tokens."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
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


def read_gguf_metadata(path: str | Path, string_arrays: Container[str] = ()) -> tuple[dict, tuple[str, ...]]:
    """What transformers' own function of this name returns: settings by key, and the names of tensors.

    Of arrays of texts only those named are read, of others the length.
    """
    reader = MetadataReader(path)
    settings = {key: _setting(field, key in string_arrays) for key, field in reader.fields.items()}
    return settings, tuple(tensor.name for tensor in reader.tensors)


def _setting(field: Field, whole: bool):
    if field.types == [ARRAY, STRING]:
        return [text.decode() for text in field.parts] if whole else len(field.parts)
    if field.types[0] == ARRAY:
        return [number for (number,) in field.parts]
    return field.parts[0].decode() if field.types == [STRING] else field.parts[0][0]


@contextmanager
def quick_metadata() -> Iterator[None]:
    """Let transformers read each GGUF file once, and by ``MetadataReader``; never while it reads weights.

    It asks for the same settings up to six times for a config and a tokenizer.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as older

    if gguf.GGUFReader is MetadataReader:
        yield
        return
    quick = [(gguf, "GGUFReader", MetadataReader)]
    quick.append((older, "load_gguf_checkpoint", _remembered(older.load_gguf_checkpoint)))
    quick.append((older, "_gguf_parse_value", _decoding(older._gguf_parse_value)))
    for module in ("transformers.integrations.gguf", "transformers.integrations.gguf.reader"):  # of 5.23, not of 5.17
        with suppress(ImportError, AttributeError):
            place = import_module(module)
            place.read_gguf_metadata  # noqa: B018 - of a module that is only filled when it is asked
            quick.append((place, "read_gguf_metadata", read_gguf_metadata))
    slow = [(place, name, getattr(place, name)) for place, name, _ in quick]
    try:
        for place, name, value in quick:
            setattr(place, name, value)
        yield
    finally:
        for place, name, value in slow:
            setattr(place, name, value)


def _remembered(load: Callable) -> Callable:
    """``load_gguf_checkpoint`` without tensors, whose dicts are copied each time, since callers change them."""
    known = {}

    def once(path, return_tensors: bool = False, **options) -> dict:
        if path not in known:
            known[path] = load(path, return_tensors=False)
        return {part: dict(settings) for part, settings in known[path].items()}

    return once


def _decoding(parse: Callable) -> Callable:
    """``_gguf_parse_value`` for texts in one step, not byte by byte."""
    return lambda value, kinds: value.decode() if isinstance(value, bytes) else parse(value, kinds)


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
