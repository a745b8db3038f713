"""Presets of the main job: values for settings that the user has left alone."""

from __future__ import annotations

from dataclasses import fields, replace

from train.common.settings import FitPolicy

PRESETS = {
    "quick": {
        "name": "quick",
        "limit": 24,
        "holdout": 0,
        "timed": 4,
        "max_new_tokens": 32,
        "rounds": 0,
        "trials": 40,
    }
}
NOTES = {
    "quick": "This was a quick look: on so few prompts, and answers so short, it proves nothing. "
    "Leave out --preset quick for a run that does."
}
"""what a run by a preset says of itself, after its verdict"""


def applied(settings: FitPolicy) -> FitPolicy:
    """``settings`` with the values of their preset wherever they are the usual ones."""
    preset = PRESETS.get(settings.preset, {})
    usual = {field.name: field.default for field in fields(settings)}
    return replace(settings, **{name: v for name, v in preset.items() if getattr(settings, name) == usual[name]})
