"""What a policy was tuned to decide: the part of its provenance that whoever runs it has to follow."""

from __future__ import annotations

from typing import Any, NamedTuple

ROLES = ("handoff", "stop")
"""Who writes the next token, or whether a draft ends here."""
LENGTH = 4
"""most tokens of a draft where nothing was tuned"""


class Role(NamedTuple):
    """``length`` is the longest draft; ``keep`` as in ``decoding.Speculative``."""

    name: str = "handoff"
    length: int = LENGTH
    keep: bool = False


def role_of(provenance: dict[str, Any]) -> Role:
    """The role that ``train/fit_policy.py`` wrote down; a hand-off where it says none. ValueError for another one."""
    role = Role(provenance.get("role", "handoff"), provenance.get("length", LENGTH), provenance.get("keep", False))
    if role.name not in ROLES or type(role.length) is not int or role.length < 1 or type(role.keep) is not bool:
        raise ValueError(f"the policy's provenance says {role}, which no decoder can follow; tune it again")
    return role
