"""What engines with a hook for drafts share: the policy as a module, and the class that they call."""

from __future__ import annotations

from policies.export.engines.numpy_module import module
from policies.export.source import Source
from policies.export.templates import template
from policies.features.table import FEATURES

UNKNOWN = ("large_entropy", "uniform")
"""Features that a hook cannot know: it is shown tokens, never the large model's distribution."""


def proposer_module(source: Source, engine: str) -> bytes:
    """The runtime, the policy, the drafting loop and the engine's class, in one file that imports nothing of ours."""
    parts = (module(source), template("drafts.py.txt"), template(engine).replace("@DRAFT@", repr(source.draft_model)))
    return "\n\n".join(part.strip("\n") + "\n" for part in parts).encode()


def refuse(source: Source) -> str | None:
    policy = source.policy
    for name in policy.names:
        if name in UNKNOWN or FEATURES[name].needs_target:
            return f"it reads {name!r}, and this engine shows a proposer of drafts tokens only"
    return "it reads hidden states, which this engine's small model does not show" if policy.needs_hidden else None
