"""Target ``transformers-config``: the draft model's generation config for transformers' own assisted generation.

transformers reads these keys from the assistant's config only, and silently ignores them as arguments of ``generate``.
Its threshold is on the drafted token's probability in the whole vocabulary; a token below it stays in the draft.
"""

from __future__ import annotations

from policies.export.draft_settings import setting_target, threshold
from policies.export.portable import dumps
from policies.export.source import Source
from policies.export.target import Files
from policies.export.templates import template

KEYS = ("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold")
PROBABILITY = "top1"


def write(source: Source) -> Files:
    config = dumps(settings(source), indent=2)
    readme = template("transformers_config.md").format(length=source.length, config=config.decode())
    return {
        "generation_config.json": config,
        "frozen_assistant.py": template("frozen_assistant.py.txt").encode(),
        "README.md": readme.encode(),
    }


def settings(source: Source) -> dict:
    """The keys and values. A threshold of 0 turns it off; the default is 0.4."""
    limit = threshold(source.policy)
    return dict(zip(KEYS, (source.length, "constant", 0.0 if limit is None else limit), strict=True))


TARGET = setting_target(
    "transformers-config",
    "the draft's generation_config.json for model.generate(assistant_model=...)",
    write,
    ("transformers", "5.17", "5.24"),
    PROBABILITY,
    "a fixed draft length, with or without a threshold on the largest probability ('top1')",
)
