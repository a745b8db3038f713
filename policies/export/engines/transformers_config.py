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


def write(source: Source) -> Files:
    limit = threshold(source.policy)
    settings = {
        "num_assistant_tokens": source.length,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0 if limit is None else limit,  # 0 turns it off; the default is 0.4
    }
    config = dumps(settings, indent=2).decode()
    readme = template("transformers_config.md").format(length=source.length, config=config)
    files = {"frozen_assistant.py": template("frozen_assistant.py.txt"), "README.md": readme}
    return {"generation_config.json": config} | files


TARGET = setting_target(
    "transformers-config",
    "the draft's generation_config.json for model.generate(assistant_model=...)",
    write,
    ("transformers", "5.17", "5.24"),
    "top1",
    "a fixed draft length, with or without a threshold on the largest probability ('top1')",
)
