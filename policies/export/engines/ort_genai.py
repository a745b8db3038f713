"""Target ``onnxruntime-genai``: keywords of ``GeneratorParams.set_speculative_options``.

Keys: onnxruntime-genai 0.18; the tests run it. It drafts at most 16 tokens, at batch 1, without a threshold. The small
model is the block ``model.draft`` of the large one's genai_config.json; both files lie below that folder, for it
refuses paths with "..".
"""

from __future__ import annotations

from policies.export.draft_settings import setting_target
from policies.export.source import Source
from policies.export.target import Files


def write(source: Source) -> Files:
    return {"speculative_options.json": {"max_draft_tokens": source.length}}


TARGET = setting_target(
    "onnxruntime-genai", "keywords of set_speculative_options", write, ("onnxruntime-genai", "0.18", "0.19"), most=16
)
