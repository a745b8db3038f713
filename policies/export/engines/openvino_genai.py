"""Target ``openvino``: generation settings for OpenVINO GenAI's speculative decoding (continuous batching).

Its threshold is on the drafted token's probability in the whole vocabulary, a token below it stays in the draft, and
length and threshold exclude each other. Greedy decoding computes the probability only with ``logprobs`` of at least 1:
with the default of 0 every draft has one token, whatever the threshold. A draft also ends at an end-of-text token.
Keys: OpenVINO GenAI 2026.4; the tests run it.
"""

from __future__ import annotations

from policies.export.draft_settings import setting_target, threshold
from policies.export.source import Source
from policies.export.target import Files


def write(source: Source) -> Files:
    limit = threshold(source.policy)
    length = {"num_assistant_tokens": source.length}
    settings = length if limit is None else {"assistant_confidence_threshold": limit, "logprobs": 1}
    return {"generation_config.json": settings}


TARGET = setting_target(
    "openvino",
    "generation_config.json for OpenVINO GenAI with a draft_model",
    write,
    ("openvino-genai", "2026.4", "2026.5"),
    "top1",
    "a fixed draft length, or a threshold on the largest probability ('top1') without any cap on the length",
)
