"""Target ``python``: the policy as one module that needs numpy and nothing else."""

from __future__ import annotations

from policies.export.modules import policy_module
from policies.export.source import Source
from policies.export.target import Files, Target, no_verification


def write(source: Source) -> Files:
    return {"policy.py": policy_module(source)}


TARGET = Target(
    name="python",
    summary="policy.py: features, score, threshold and decide in numpy, for any loop in Python",
    write=write,
    refuse=no_verification,
    carries="every policy but those that verify drafted tokens",
    engines={"numpy": ("1.24", "3")},
)
