"""Target ``python``: the policy as one module that needs numpy and nothing else."""

from __future__ import annotations

from pathlib import Path

from policies.export.engines.portable_json import document, dumps
from policies.export.source import Source
from policies.export.target import Files, Target
from policies.features.table import FEATURES

_TAIL = '''
POLICY = json.loads({data!r})
"""The policy as data, with where it comes from."""
DECISION = Decision(POLICY)
features, score, decide, threshold = DECISION.features, DECISION.score, DECISION.decide, DECISION.threshold
'''


def write(source: Source) -> Files:
    return {"policy.py": module(source).encode()}


def module(source: Source) -> str:
    """The text of the module: the runtime, which imports nothing of ours, and the policy as a literal."""
    runtime = Path(__file__).parents[1].joinpath("runtime.py").read_text(encoding="utf-8")
    runtime = runtime.replace("\nimport warnings\n", "\nimport json\nimport warnings\n", 1)
    return runtime + _TAIL.format(data=dumps(document(source)).decode())


def refuse(source: Source) -> str | None:
    judged = [name for name in source.policy.names if FEATURES[name].needs_target]
    if judged:
        return f"{judged[0]!r} is a feature of drafted tokens that the large model has read; use --to json"
    return None


TARGET = Target(
    name="python",
    summary="policy.py: features, score, threshold and decide in numpy, for any loop in Python",
    write=write,
    refuse=refuse,
    carries="every policy but judges of drafts",
    engines={"numpy": ("1.24", "3")},
)
