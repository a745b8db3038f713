"""A policy as one Python module that imports nothing of this package."""

from __future__ import annotations

from pathlib import Path

from policies.export.portable import document, dumps
from policies.export.source import Source
from policies.export.templates import template
from policies.features.table import FEATURES

UNKNOWN = ("large_entropy", "uniform")
"""Features that a drafting hook cannot compute: it sees tokens, never the large model's distribution."""
_POLICY = '''
POLICY = json.loads({data!r})
"""The policy as data, with its provenance."""
DECISION = Decision(POLICY)
features, score, decide, threshold = DECISION.features, DECISION.score, DECISION.decide, DECISION.threshold
'''


def policy_module(source: Source) -> str:
    """The runtime and the policy as a literal."""
    runtime = Path(__file__).with_name("runtime.py").read_text(encoding="utf-8")
    runtime = runtime.replace("\nimport warnings\n", "\nimport json\nimport warnings\n", 1)
    return runtime + _POLICY.format(data=dumps(document(source)).decode())


def proposer_module(source: Source, engine: str) -> str:
    """``policy_module``, the drafting loop, and the class of the template ``engine`` that the engine calls."""
    hook = template(engine).replace("@DRAFT@", repr(source.draft_model))
    parts = (policy_module(source), template("drafts.py.txt"), hook)
    return "\n\n".join(part.strip("\n") + "\n" for part in parts)


def no_proposer(source: Source) -> str | None:
    """The reason why a drafting hook cannot take the policy's decisions; None if it can."""
    policy = source.policy
    for name in policy.names:
        if name in UNKNOWN or FEATURES[name].needs_target:
            return f"it reads {name!r}, and this engine shows a proposer of drafts tokens only"
    return "it reads hidden states, which this engine's small model does not show" if policy.needs_hidden else None
