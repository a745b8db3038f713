"""Target ``vllm``: the ``speculative_config`` of vLLM with a draft model. ``vllm-custom-class`` carries policies.

Keys: vLLM 0.33. Its released versions have no threshold on the draft's confidence.
"""

from __future__ import annotations

from policies.export.draft_settings import setting_target
from policies.export.source import Source
from policies.export.target import Files


def write(source: Source) -> Files:
    settings = {"method": "draft_model", "model": source.draft_model, "num_speculative_tokens": source.length}
    return {"speculative_config.json": settings}


TARGET = setting_target("vllm", "speculative_config.json for vllm serve", write, ("vllm", "0.32", "0.34"))
