"""Targets of engines that draft the same number of tokens in every round."""

from __future__ import annotations

from collections.abc import Callable

from policies.export.settings import why_not
from policies.export.source import Source
from policies.export.target import Files, Target


def fixed_length(
    name: str,
    summary: str,
    write: Callable[[Source], Files],
    engine: tuple[str, str, str],
    most: int | None = None,
    evidence: str = "run",
) -> Target:
    """A target that carries a draft length of at most ``most`` and no decision; ``engine`` is its name and versions."""

    def refuse(source: Source) -> str | None:
        if most is not None and source.length > most:
            return f"it drafts at most {most} tokens, not {source.length}; pass a smaller --length"
        return why_not(source, None)

    return Target(
        name=name,
        summary=summary,
        write=write,
        refuse=refuse,
        carries="a fixed draft length (a policy of kind 'never', and --length)",
        roles=("stop",),
        engines={engine[0]: engine[1:]},
        evidence=evidence,
    )
