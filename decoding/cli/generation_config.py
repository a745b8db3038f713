"""The settings that models ship with, as options: which to go on without, and how the large model would draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from tyro.conf import arg

from decoding.cli.sampling import described

IgnoredSettings = Annotated[
    str,
    arg(
        metavar="NAME[,NAME]",
        help="settings of the models' generation_config to go on without, such as repetition_penalty; by default the "
        "large model's hold for every token, and those that cannot be applied are refused by name",
        help_behavior_hint="",
    ),
]


def check_ignored(names: str) -> tuple[str, ...]:
    """The settings in the value ``names`` of the option. ValueError for one that cannot be left out."""
    from decoding.models.settings import ignored_names

    return ignored_names(names)


def without(models: Sequence, names: str) -> None:
    """Let ``models`` go on without the settings in the value ``names`` of the option."""
    from decoding.models.settings import ignore_settings

    for lm in models:
        ignore_settings(lm, check_ignored(names))


def own_sampling(lm) -> str:
    """How ``lm`` draws by its own generation_config, in words; empty if it takes the likeliest tokens."""
    from decoding.models.settings import default_sampling

    own = default_sampling(lm)
    return "" if own.greedy else described(own)
