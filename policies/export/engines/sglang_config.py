"""Target ``sglang``: arguments of its server for a draft model, and the table of its adaptive EAGLE.

Keys: SGLang 0.5.23. Its acceptance thresholds are on the large model's probability and make the output lossy: no policy
is written as one. The adaptive table, which only EAGLE reads, has one step here, the tuned length.
"""

from __future__ import annotations

import shlex

from policies.export.draft_settings import setting_target
from policies.export.portable import dumps
from policies.export.source import Source
from policies.export.target import Files

ARGUMENTS = (
    "--speculative-algorithm",
    "--speculative-draft-model-path",
    "--speculative-num-steps",
    "--speculative-eagle-topk",
    "--speculative-num-draft-tokens",
)
ADAPTIVE = ("candidate_steps", "up_hysteresis", "down_hysteresis", "ceiling_coeff")


def write(source: Source) -> Files:
    # The large model verifies the draft and the token before it.
    values = ("STANDALONE", source.draft_model, source.length, 1, source.length + 1)
    words = [str(word) for pair in zip(ARGUMENTS, values, strict=True) for word in pair]
    adaptive = {"1": dict(zip(ADAPTIVE, ([source.length], 0, -0.25, 0), strict=True))}
    return {"sglang.args": (shlex.join(words) + "\n").encode(), "adaptive.json": dumps(adaptive, indent=2)}


TARGET = setting_target(
    "sglang",
    "arguments of the server, and its adaptive table",
    write,
    ("sglang", "0.5.23", "0.6"),
    evidence="notes",
)
