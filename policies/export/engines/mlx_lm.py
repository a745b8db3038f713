"""Target ``mlx-lm``: the draft length for mlx_lm.generate, its server, and ``speculative_generate_step``.

Keys: mlx-lm 0.32. It verifies by exact match, and has no threshold on a probability.
"""

from __future__ import annotations

import shlex

from policies.export.draft_settings import setting_target
from policies.export.portable import dumps
from policies.export.source import Source
from policies.export.target import Files

ARGUMENTS = ("--draft-model", "--num-draft-tokens")
KEYS = ("num_draft_tokens",)


def write(source: Source) -> Files:
    words = [ARGUMENTS[0], source.draft_model, ARGUMENTS[1], str(source.length)]
    return {
        "mlx_lm.args": (shlex.join(words) + "\n").encode(),
        "request.json": dumps({KEYS[0]: source.length}, indent=2),
    }


TARGET = setting_target("mlx-lm", "arguments and request field of mlx-lm", write, ("mlx-lm", "0.32", "0.33"))
