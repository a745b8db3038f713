"""Target ``sglang``: arguments of its server for a draft model, and the table of its adaptive EAGLE.

Keys: SGLang 0.5.23. Its acceptance thresholds are on the large model's probability and make the output lossy: no policy
is written as one. The adaptive table, which only EAGLE reads, has one step here, the tuned length.
"""

from __future__ import annotations

from policies.export.draft_settings import setting_target
from policies.export.source import Source
from policies.export.target import Files


def write(source: Source) -> Files:
    words = [
        *("--speculative-algorithm", "STANDALONE"),
        *("--speculative-draft-model-path", source.draft_model),
        *("--speculative-num-steps", source.length),
        *("--speculative-eagle-topk", 1),
        *("--speculative-num-draft-tokens", source.length + 1),  # the large model verifies the token before them too
    ]
    step = {"candidate_steps": [source.length], "up_hysteresis": 0, "down_hysteresis": -0.25, "ceiling_coeff": 0}
    return {"sglang.args": words, "adaptive.json": {"1": step}}


TARGET = setting_target(
    "sglang", "arguments of the server, and its adaptive table", write, ("sglang", "0.5.23", "0.6"), evidence="notes"
)
