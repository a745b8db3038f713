"""Fenced Markdown blocks, in which answers put their code."""

import re

FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


def blocks(text: str) -> list[str]:
    """The content of each fenced block; the last may lack its end."""
    return FENCE.findall(text)
