"""Target ``mlx-lm``: the draft length for mlx_lm.generate, its server, and ``speculative_generate_step``.

Keys: mlx-lm 0.32. It verifies by exact match, and has no threshold on a probability.
"""

from __future__ import annotations

from policies.export.draft_settings import setting_target
from policies.export.source import Source
from policies.export.target import Files


def write(source: Source) -> Files:
    words = ["--draft-model", source.draft_model, "--num-draft-tokens", source.length]
    return {"mlx_lm.args": words, "request.json": {"num_draft_tokens": source.length}}


TARGET = setting_target("mlx-lm", "arguments and request field of mlx-lm", write, ("mlx-lm", "0.32", "0.33"))
