"""Texts that are drawn at a temperature: how many a prompt, for settings that have ``drawing`` and ``seeds``."""

from __future__ import annotations

LEAST_SEEDS = 2
"""texts of each prompt at a temperature: a loss is held to the large model's own, each judged beside another"""


def texts_a_prompt(settings) -> int:
    """Texts of each prompt that a loss is the mean of: one where all would be the same."""
    if settings.drawing.greedy:
        return 1
    return LEAST_SEEDS if settings.seeds is None else settings.seeds


def check_drawing(settings) -> None:
    """ValueError, one sentence, for a sampling that means nothing, or a number of texts that does not go with it."""
    settings.drawing.check()
    if settings.drawing.greedy:
        if settings.seeds is not None:
            raise ValueError("leave out --seeds, or add --temperature: greedy texts of one prompt are all the same")
    elif settings.seeds is not None and settings.seeds < LEAST_SEEDS:
        raise ValueError(f"--seeds must be at least {LEAST_SEEDS} at a temperature, not {settings.seeds}")
