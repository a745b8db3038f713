"""Errors of prompt sources: one sentence that says where, what is wrong and what is right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class PromptError(ValueError):
    """A prompt source that cannot be used; the message, one sentence, says where, what is wrong and what is right."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def show(text: str) -> str:
    """``text`` as an error message quotes it: one short line."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 200 else text[:200] + "..."


@contextmanager
def at(where: str) -> Iterator[None]:
    """Prepend ``where`` to the message of a ValueError raised inside."""
    try:
        yield
    except ValueError as error:
        raise PromptError(f"{where}: {error}") from error.__cause__
