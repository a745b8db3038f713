"""Target ``tensorrt-llm``: keywords of ``DraftTargetDecodingConfig``.

Keys: the documentation of TensorRT-LLM 1.3 and 1.4. Every draft has the same length.
"""

from __future__ import annotations

from policies.export.draft_settings import setting_target
from policies.export.portable import dumps
from policies.export.source import Source
from policies.export.target import Files

KEYS = ("max_draft_len", "speculative_model", "max_concurrency", "draft_len_schedule", "use_rejection_sampling")


def write(source: Source) -> Files:
    settings = {KEYS[0]: source.length, KEYS[1]: source.draft_model}
    return {"draft_target_decoding_config.json": dumps(settings, indent=2)}


TARGET = setting_target(
    "tensorrt-llm",
    "keywords of DraftTargetDecodingConfig",
    write,
    ("tensorrt-llm", "1.3", "1.5"),
    evidence="notes",
)
