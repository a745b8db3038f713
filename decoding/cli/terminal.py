"""The text on the terminal, in its writers' colours, and one line of statistics."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.text import Text

STYLES = {"small": "green", "large": "black on yellow"}


def painter(names: Sequence[str]) -> Callable:
    """What prints a ``Piece``: in its writer's colours on a terminal, as plain text elsewhere and with NO_COLOR."""
    sys.stdout.reconfigure(errors="replace")  # else a character that the terminal cannot show raises
    console = Console(soft_wrap=True)
    if console.color_system is None or console.no_color:
        return lambda piece: print(piece.text, end="", flush=True)
    return lambda piece: console.print(Text(piece.text, STYLES[names[piece.writer]]), end="")


def show_statistics(state, names: Sequence[str], seconds: float) -> None:
    """Print one line on standard error; on a terminal the colours of the names are the legend."""
    writers = state.buffer.writers_of(0)
    parts = [f"{len(writers)} tokens", f"{len(writers) / seconds:.1f} tokens/s"]
    for i, (name, session) in enumerate(zip(names, state.sessions, strict=True)):
        share = writers.count(i) / max(len(writers), 1)
        parts.append(f"[{STYLES[name]}]{name}[/] wrote {share:.0%} in {session.calls} calls")
    if state.drafted:
        parts.append(f"{state.accepted} of {int(state.drafted)} drafted tokens accepted")
    Console(stderr=True, highlight=False, soft_wrap=True).print(", ".join(parts))
