"""The source of an export: a policy, its files, and how an engine is to use it."""

from __future__ import annotations

import ast
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.decoder_spec import EXACT, DecoderSpec, spec_of
from policies.export.versions import installed
from policies.loading import load
from policies.policy import Policy

DECODERS = {"backoff": "handoff", "speculative": "stop"}
"""the decoders that other engines can follow, and the role of their policy: who writes, or whether a draft ends"""
ROLES = tuple(DECODERS.values())
LENGTH = 4  # most tokens of a draft, unless it was tuned


class ExportError(ValueError):
    """An export that cannot be made, or a folder that is not as it was written; the message is one sentence."""


@dataclass(frozen=True)
class Source:
    """A policy to export; ``length`` is the most tokens of a draft, ``draft`` the path of the small model."""

    policy: Policy
    files: dict[str, bytes]  # the policy's own files by the names in its JSON; ``policy.json`` is one of them
    role: str = "handoff"
    length: int = LENGTH
    draft: str | None = None
    approximation: dict[str, Any] | None = None  # the setting that was fitted in place of the policy in ``files``

    @property
    def sha256(self) -> str:
        """The hash of the policy's JSON, which holds that of its safetensors file."""
        return hashlib.sha256(self.files["policy.json"]).hexdigest()

    @property
    def draft_model(self) -> str:
        """Path or name of the small model, for engines that take it as an argument."""
        if self.draft is not None:
            return self.draft
        return self.policy.models[0]["name"] if self.policy.models else "DRAFT_MODEL"

    @property
    def processors(self) -> dict[str, Any]:
        """The settings of the large model's generation_config that changed the logits which the policy was tuned on."""
        try:
            found = ast.literal_eval(self.policy.models[-1]["generation_config"])
        except (IndexError, KeyError, TypeError, ValueError, SyntaxError, RecursionError, MemoryError):
            return {}
        ends = "eos", "stop_strings"
        return {str(name): value for name, value in found.items() if name not in ends} if type(found) is dict else {}

    @property
    def tuned_for(self) -> str:
        """The texts that the policy was tuned for: how they are drawn, and how many at once."""
        held = self.policy.provenance
        sampling, batch = held.get("sampling") or {}, held.get("batch_size", 1)
        numbers = (type(None), int, float)
        known = type(sampling) is dict and all(type(value) in numbers for value in sampling.values())
        if not known or type(batch) is not int:
            raise ExportError("the policy's provenance has a sampling or a batch size that is none; tune it again")
        drawn = ", ".join(f"{name} {value:g}" for name, value in sampling.items() if value)
        text = f"texts drawn with {drawn}" if drawn else "greedy texts"
        return f"{text}, {'one at a time' if batch == 1 else f'{batch} at a time'}"

    def provenance(self) -> dict[str, Any]:
        """Models, tokenizer, engine, machine, prompts and certificate of the policy, and all of its own provenance."""
        held, models = self.policy.provenance, self.policy.models
        return {
            "policy": {"sha256": self.sha256},
            "role": self.role,
            "length": self.length,
            "models": models,
            "tokenizer": models[0]["tokenizer"] if models else None,
            "processors": self.processors,
            "engine": {"name": "two-model-decoding", "version": installed("two-model-decoding")},
            "machine": held.get("machine"),
            "prompts": prompts_hash(held.get("splits")),
            "certificate": held.get("certificate"),
            "approximation": self.approximation,
            "tuning": held,
        }


def open_source(path: Path, role: str | None, length: int | None, draft: str | None = None) -> Source:
    """The policy at ``path``; a ``role`` or ``length`` of None is the one that it was tuned for.

    ExportError or PolicyError, one sentence, if no target can carry it.
    """
    policy, path = load(path), Path(path)
    tuned = spec_of(policy.provenance)
    role = _role(path, tuned) if role is None else role
    length = tuned.settings.get("length", LENGTH) if length is None else length
    if role not in ROLES:
        raise ExportError(f"unknown role {role!r}; the known ones are {', '.join(ROLES)}")
    if type(length) is not int or not 1 <= length <= 64:
        raise ExportError(f"the draft length is {length!r}; it must be a whole number from 1 to 64")
    data = path.read_bytes()
    beside, files = json.loads(data).get("tensors"), {"policy.json": data}
    if beside is not None:
        name = Path(beside["file"]).name  # beside the JSON, as it was loaded
        files[name] = path.with_name(name).read_bytes()
    return Source(policy, files, role, length, draft)


def _role(path: Path, tuned: DecoderSpec) -> str:
    """The role that the policy was tuned for. ExportError if only this package has its decoder."""
    if tuned.name in DECODERS and tuned.settings.get("accept", EXACT) == EXACT:
        return DECODERS[tuned.name]
    raise ExportError(
        f"{path} was tuned for the decoder {tuned.name} with {tuned.settings}, which only python -m decoding runs; "
        f"pass --role {' or '.join(ROLES)} to export its decision alone, for drafts that are accepted exactly"
    )


def prompts_hash(splits: Any) -> str | None:
    """One hash of the hashes of all splits; None if the policy does not name the prompts it was tuned on."""
    if not isinstance(splits, dict) or not splits:
        return None
    hashes = [f"{name}:{split.get('hash') if isinstance(split, dict) else split}" for name, split in splits.items()]
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()
