"""A decoder, and the spec and policy by which another process makes the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from decoding import LM
from decoding.decoders.registry import build_decoder, decoder_kind
from policies import Policy, load
from policies.decoder_spec import DecoderSpec
from policies.loading import KINDS


@dataclass(frozen=True)
class Blueprint:
    """A ``decoder`` on models of this process. Without a ``spec`` no other process can make it."""

    decoder: Any
    spec: DecoderSpec | None = None
    policy: Policy | None = None

    @classmethod
    def of(cls, models: Sequence[LM], spec: DecoderSpec, policy: Policy | None = None) -> Self:
        """That of the decoder that ``spec`` and ``policy`` make of ``models``, (small, large)."""
        own = [dict(zip(("small", "large"), models, strict=True))[role] for role in decoder_kind(spec.name).models]
        asked = None if policy is None else policy.to(models[-1].device)
        return cls(build_decoder(own, asked, spec), spec, policy)

    @property
    def portable(self) -> bool:
        """Whether files can hold all that it is made of."""
        return self.spec is not None and (self.policy is None or KINDS.get(self.policy.kind) is type(self.policy))

    def digest(self) -> str:
        """A hash of all that its texts depend on besides the models; another each time where that is not known."""
        if not self.portable:
            return uuid4().hex
        found = hashlib.sha256(repr(asdict(self.spec)).encode())
        if self.policy is not None:
            found.update(repr((self.policy.kind, self.policy.names, self.policy.settings())).encode())
            for name, buffer in self.policy.named_buffers():
                found.update(name.encode() + buffer.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()[:16]

    def save(self, path: Path) -> dict[str, Any]:
        """Write the policy to ``path``, if there is one; returns what ``read`` reads, as JSON has it."""
        if self.policy is not None:
            self.policy.save(path, models=[], provenance={})
        return {"spec": asdict(self.spec), "policy": None if self.policy is None else path.name}

    @classmethod
    def read(cls, folder: Path, saved: dict[str, Any], models: Sequence[LM]) -> Self:
        """That which ``save`` wrote into ``folder``, of ``models``."""
        policy = None if saved["policy"] is None else load(folder / saved["policy"])
        return cls.of(models, DecoderSpec(**saved["spec"]), policy)
