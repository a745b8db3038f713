"""Where answers put their code: the fenced blocks of Markdown."""

from __future__ import annotations

import re

FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


def blocks(text: str) -> list[str]:
    """What stands in each fenced block; the last may be cut short."""
    return FENCE.findall(text)
