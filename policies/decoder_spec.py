"""The decoder that a policy was tuned for: the part of its provenance that whoever runs the policy follows."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

EXACT = {"name": "Exact"}
"""the rule that accepts a draft and loses nothing, as ``accept`` among the settings of a decoder names it"""


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder by its name in ``decoding.decoders.registry``, and its settings there; those left out are defaults.

    ``asdict`` of it is what the provenance holds under "decoder".
    """

    name: str = "backoff"
    settings: dict[str, Any] = field(default_factory=dict)


def spec_of(provenance: dict[str, Any]) -> DecoderSpec:
    """The decoder that ``provenance`` names, backoff if none. ValueError for anything but an ``asdict`` of a spec."""
    if "role" in provenance:
        raise ValueError("the policy was tuned by an earlier version; tune it again")
    match provenance.get("decoder", asdict(DecoderSpec())):
        case {"name": str(name), "settings": dict(settings), **others} if not others:
            return DecoderSpec(name, settings)
        case written:
            raise ValueError(f"the policy's provenance names no decoder but {written!r}; tune it again")
