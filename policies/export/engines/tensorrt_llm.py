"""Target ``tensorrt-llm``: keywords of ``DraftTargetDecodingConfig``.

Keys: the documentation of TensorRT-LLM 1.3 and 1.4. Every draft has the same length.
"""

from __future__ import annotations

from policies.export.draft_settings import setting_target
from policies.export.source import Source
from policies.export.target import Files


def write(source: Source) -> Files:
    settings = {"max_draft_len": source.length, "speculative_model": source.draft_model}
    return {"draft_target_decoding_config.json": settings}


TARGET = setting_target(
    "tensorrt-llm", "keywords of DraftTargetDecodingConfig", write, ("tensorrt-llm", "1.3", "1.5"), evidence="notes"
)
