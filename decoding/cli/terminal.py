"""The text on the terminal, in its writers' colours, and one line of statistics; no text commands the terminal."""

from __future__ import annotations

import io
import os
import re
import select
import sys
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.segment import Segment
from rich.text import Text

STYLES = {"small": "green", "large": "black on yellow"}
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters other than line breaks and tabs, which a terminal obeys, and bytes that were not UTF-8."""


def visible(text: str) -> str:
    """The text with its control characters, and what is not Unicode, written as escapes, such as ``\\x1b``."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def escape_what_cannot_be_encoded() -> None:
    """Let a character that standard output or error cannot encode be an escape there, not an exception."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def unread() -> bool:
    """True where standard output is a pipe whose reader has gone, as ``head`` goes when it has its lines."""
    if not isinstance(sys.stdout, io.TextIOWrapper) or not hasattr(select, "poll"):  # closed; captured; Windows
        return False
    asked = select.poll()
    asked.register(sys.stdout, 0)  # an error is reported though nothing is asked for
    return any(event & select.POLLERR for _, event in asked.poll(0))


def drop_unwritten() -> None:
    """Let what standard output could not take go nowhere, so that it raises nothing as Python ends."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class PlainConsole(Console):
    """A console that prints names and texts as they are: brackets and colons mean nothing, control characters show."""

    def __init__(self, **options):
        super().__init__(markup=False, emoji=False, **options)

    def render(self, renderable, options=None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)


def painter(names: Sequence[str]) -> Callable:
    """A printer of ``Piece``: on a terminal in its writer's colours, unless NO_COLOR is set; elsewhere unchanged."""
    console = PlainConsole(soft_wrap=True)
    shown = visible if console.is_terminal else str
    if console.color_system is None or console.no_color:
        return lambda piece: print(shown(piece.text), end="", flush=True)
    return lambda piece: console.print(Text(shown(piece.text), STYLES[names[piece.writer]]), end="")


def show_statistics(state, names: Sequence[str], seconds: float) -> None:
    """Print one line on standard error; on a terminal the colours of the names are the legend."""
    writers = state.buffer.writers_of(0)
    parts = [f"{len(writers)} tokens", f"{len(writers) / seconds:.1f} tokens/s"]
    for i, (name, session) in enumerate(zip(names, state.sessions, strict=True)):
        share = writers.count(i) / max(len(writers), 1)
        parts.append(f"[{STYLES[name]}]{name}[/] wrote {share:.0%} in {session.calls} calls")
    if state.drafted:
        parts.append(f"{state.accepted} of {int(state.drafted)} drafted tokens accepted")
    costs = [session.recorder.cost for session in state.sessions if session.recorder is not None]
    if recordings := sum(cost.count for cost in costs):
        parts.append(f"{recordings} graphs recorded in {sum(cost.seconds for cost in costs):.1f} s")
    Console(stderr=True, highlight=False, soft_wrap=True).print(", ".join(parts))
