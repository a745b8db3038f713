"""The decoder that a policy was tuned for: the part of its provenance that whoever runs the policy follows."""

from __future__ import annotations

from dataclasses import dataclass, field
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
    """The decoder that ``provenance`` names, backoff where it names none. ValueError where it is not a decoder's."""
    if "role" in provenance:
        raise ValueError("the policy was tuned by an earlier version; tune it again")
    written = provenance.get("decoder", {})
    try:
        spec = DecoderSpec(**written)
    except TypeError:
        spec = DecoderSpec("", {})
    if not spec.name or not isinstance(spec.name, str) or not isinstance(spec.settings, dict):
        raise ValueError(f"the policy's provenance names no decoder but {written!r}; tune it again")

    return spec
