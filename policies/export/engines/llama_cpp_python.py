"""Target ``llama-cpp-python``: a ``LlamaDraftModel`` that drafts with a small model and the whole policy."""

from __future__ import annotations

from policies.export.modules import no_proposer, proposer_module
from policies.export.source import Source
from policies.export.target import Files, Target


def write(source: Source) -> Files:
    return {"policy_draft_model.py": proposer_module(source, "llama_cpp_python.py.txt")}


TARGET = Target(
    name="llama-cpp-python",
    summary="policy_draft_model.py: a LlamaDraftModel for Llama(draft_model=...)",
    write=write,
    refuse=no_proposer,
    carries="every policy that reads no distribution of the large model, no noise and no hidden state",
    roles=("stop",),
    engines={"llama-cpp-python": ("0.3", "0.4")},
)
