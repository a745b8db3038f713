"""What a policy was tuned to decide: the part of its provenance that whoever runs it has to follow."""

from __future__ import annotations

from typing import Any, NamedTuple

ROLES = ("handoff", "stop")
"""Who writes the next token, or whether a draft ends here."""
LENGTH = 4
"""most tokens of a draft where nothing was tuned"""
EXACT = {"name": "Exact"}
"""how a draft is accepted that must lose nothing"""


class DecoderSpec(NamedTuple):
    """``length`` is the longest draft; ``keep`` as in ``decoding.Speculative``."""

    name: str = "handoff"
    length: int = LENGTH
    keep: bool = False
    accept: dict[str, Any] = EXACT
    """the rule that accepts a draft, by name, and its settings (``decoding.acceptance.rules.rule``)"""
    beams: int = 1
    """of the draft; several are MTAD's, by the ``tau`` of ``accept``, or where that is exact SpecInfer's"""
    tree: bool = False
    """whether all that the beams went through is verified (MMTAD, SpecInfer), not the best of them alone"""

    @property
    def method(self) -> str:
        """What ``python -m decoding`` calls the decoder."""
        if self.name == "handoff":
            return "backoff"
        if self.beams == 1:
            return "speculative"
        return "specinfer" if self.accept == EXACT else "mmtad" if self.tree else "mtad"


def spec_of(provenance: dict[str, Any]) -> DecoderSpec:
    """The role that ``train/fit_policy.py`` wrote down; a hand-off where it says none. ValueError for another one."""
    known = {key: provenance[key] for key in DecoderSpec._fields[1:] if key in provenance}
    role = DecoderSpec(provenance.get("role", "handoff"), **known)
    switches = all(type(switch) is bool for switch in (role.keep, role.tree))
    if role.name not in ROLES or not switches or not _counts(role.length, role.beams) or not _rule(role):
        raise ValueError(f"the policy's provenance says {role}, which no decoder can follow; tune it again")
    return role


def _counts(*values: Any) -> bool:
    return all(type(value) is int and value >= 1 for value in values)


def _rule(role: DecoderSpec) -> bool:
    accept = role.accept
    if not isinstance(accept, dict) or not isinstance(accept.get("name"), str):
        return False
    return role.beams == 1 or "tau" in accept or (accept == EXACT and role.tree)
