"""Target ``vllm-custom-class``: a proposer module for vLLM, with a small model of its own and the whole policy.

The interface is that of vLLM 0.33 and marked experimental there: ``Class(vllm_config)`` and ``propose``.
"""

from __future__ import annotations

from policies.export.modules import no_proposer, proposer_module
from policies.export.source import Source
from policies.export.target import Files, Target


def write(source: Source) -> Files:
    model = "policy_proposer.PolicyProposer"
    settings = {"method": "custom_class", "model": model, "num_speculative_tokens": source.length}
    return {"policy_proposer.py": proposer_module(source, "vllm_proposer.py.txt"), "speculative_config.json": settings}


TARGET = Target(
    name="vllm-custom-class",
    summary="policy_proposer.py and the speculative_config that names it; the folder must be on PYTHONPATH",
    write=write,
    refuse=no_proposer,
    carries="every policy that reads no distribution of the large model, no noise and no hidden state",
    roles=("stop",),
    engines={"vllm": ("0.33", "0.34")},
    evidence="notes",
)
