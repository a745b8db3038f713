"""Decoding methods by a short text, as the commands take them.

    large    speculative:length=2,accept=block    mtad:beams=4,tau=0.5@sampling    policy:runs/default/policy.json

A method is NAME[:key=value,...]; what is left out has its default. ``@sampling[:key=value,...]`` lets it draw tokens
instead of taking the likeliest, every method through the same filters.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import decoding
from experiments.comparison.registry import Kind, kinds

SUFFIX = "@sampling"
SAMPLING = {"temperature": 1.0, "top_k": 10, "top_p": 0.9}
"""The filters of the MTAD paper; ``top_k=0`` and ``top_p=1`` filter nothing."""


class MethodError(ValueError):
    """A method that cannot be read or built. The message is one sentence."""


@dataclass(frozen=True)
class Method:
    """A method with all its options; ``str`` of it is its canonical text, which ``parse`` reads back."""

    name: str
    options: dict[str, Any]
    sampling: dict[str, Any] | None = None

    @property
    def kind(self) -> Kind:
        return kinds()[self.name]

    def identity(self) -> str:
        """Everything that its answers depend on: the canonical text, and the hash of the policy's file."""
        path = self.options.get("path")
        digest = "" if path is None else "#" + hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8]
        return f"{self}{digest}"

    def __str__(self) -> str:
        head = f"{self.name}:{self.options['path']}" if self.name == "policy" else _written(self.name, self.options)
        return head if self.sampling is None else head + _written(SUFFIX, self.sampling)


def parse(text: str) -> Method:
    """The method that ``text`` names. Raises MethodError, one sentence, for anything that is not one exactly."""
    head, sign, tail = text.rpartition(SUFFIX) if SUFFIX in text else (text, "", "")
    name, colon, rest = head.partition(":")
    known = kinds()
    if name not in known:
        raise MethodError(f"unknown method {name!r} in {text!r}; the known ones are {', '.join(known)}")
    if name == "policy" and not rest:
        raise MethodError(f"{text!r} names no file; write policy:PATH with a policy.json")
    if name == "beam" and sign:
        raise MethodError(f"beam search does not draw tokens; leave {SUFFIX} out of {text!r}")
    options = {"path": rest} if name == "policy" else _options(text, colon + rest, known[name].options)
    return Method(name, options, _options(text, tail, SAMPLING) if sign else None)


def build(method: Method, models: Sequence) -> Any:
    """The decoder of a method for [small, large]. Raises MethodError when an option has a value it cannot have."""
    try:
        decoder = method.kind.build(list(models), **_keywords(method.options))
        if method.sampling is None:
            return decoder
        top_k = method.sampling["top_k"]
        return Sampled(decoder, decoding.Sampling(**method.sampling | {"top_k": None if top_k == 0 else top_k}))
    except (ValueError, OSError) as error:
        raise MethodError(f"{method} cannot be built: {' '.join(str(error).split())}") from error


class Sampled:
    """A decoder with its own sampling, so that one measurement can hold methods that draw and methods that do not."""

    def __init__(self, decoder, sampling):
        self.decoder, self.sampling = decoder, sampling
        self.models, self.scratch = decoder.models, decoder.scratch

    def write(self, state) -> Iterator:
        state.sampling = self.sampling
        return self.decoder.write(state)


def _options(text: str, rest: str, known: dict[str, Any]) -> dict[str, Any]:
    """The options in ``rest``, which is empty or ``:key=value,...``, over the defaults."""
    options = {key: value[0] if isinstance(value, tuple) else value for key, value in known.items()}
    if not rest:
        return options
    given = {}
    for part in rest[1:].split(","):
        key, sign, value = part.partition("=")
        if rest[0] != ":" or not sign or key in given:
            raise MethodError(f"{part!r} in {text!r} is not key=value, each key once, after a colon")
        if key not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes no options"
            raise MethodError(f"unknown option {key!r} in {text!r}; {takes}")
        given[key] = _value(text, key, value, known[key])
    return options | given


def _value(text: str, key: str, value: str, default: Any) -> Any:
    """``value`` as the type of its default, or one of the choices."""
    if isinstance(default, tuple):
        if value not in default:
            raise MethodError(f"{key}={value} in {text!r} must be one of {', '.join(default)}")
        return value
    if isinstance(default, str):
        return value
    try:
        number = type(default)(value)
        # int() and float() also read "1_0", " 1" and digits of other scripts.
        if math.isfinite(number) and re.fullmatch(r"[-+.\deE]+", value, re.ASCII):
            return number
    except (ValueError, OverflowError):
        pass
    what = "a whole number" if isinstance(default, int) else "a finite number"
    raise MethodError(f"{key}={value} in {text!r} must be {what}")


def _written(name: str, options: dict[str, Any]) -> str:
    pairs = [f"{key}={str(value).removesuffix('.0')}" for key, value in options.items()]
    return name + (":" + ",".join(pairs) if pairs else "")


def _keywords(options: dict[str, Any]) -> dict[str, Any]:
    """Options as the decoders take them: ``verify`` becomes ``filtered``."""
    own = {key: value for key, value in options.items() if key != "verify"}
    return own | ({"filtered": options["verify"] == "filtered"} if "verify" in options else {})


def catalogue() -> str:
    """The methods with their defaults, a line each, for a command's help."""
    lines = []
    for name, kind in kinds().items():
        method = "policy:PATH" if name == "policy" else str(Method(name, _options(name, "", kind.options)))
        lines.append(f"    {method:<60}{kind.about}")
    return "\n".join([*lines, f"    ...{_written(SUFFIX, SAMPLING):<57}any of them, drawing"])
