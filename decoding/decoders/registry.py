"""The registry of decoders: a new decoder is a file and a line here.

The command line, policy artifacts and experiments read these lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from decoding.registry import Entry


class Setting(NamedTuple):
    """A setting of a decoder; values are of the type of its default."""

    default: Any
    least: float | None = None
    help: str | None = None  # of its option on the command line; without one only an artifact or Python code sets it
    most: float | None = None

    def check(self, name: str, value: Any) -> None:
        """ValueError, one sentence, for a value that it cannot have."""
        kinds = (int, float) if isinstance(self.default, float) else (type(self.default),)
        if type(value) not in kinds:
            raise ValueError(f"{name} must be of type {kinds[-1].__name__}, not {value!r}")
        if self.least is not None and not value >= self.least:
            raise ValueError(f"{name} must be at least {self.least}, not {value}")
        if self.most is not None and value > self.most:
            raise ValueError(f"{name} must be at most {self.most}, not {value}")


@dataclass(frozen=True)
class DecoderKind(Entry):
    """A line of the registry. What it loads takes ``(models, policy, **settings)``: one model if it is alone, and no
    policy if ``policy`` is None."""

    models: tuple[str, ...] = ("small", "large")  # names of its models, cheapest first
    role: str | None = None  # its decision: "handoff" (who writes the next token) or "stop" (whether a draft ends)
    policy: str | None = None  # whether a policy takes that decision: "needed", "optional" or None

    def checked(self, settings: dict[str, Any]) -> dict[str, Any]:
        """All its settings, by default where ``settings`` leaves them out. ValueError for one that it cannot have."""
        for key, value in settings.items():
            if key not in self.settings:
                raise ValueError(f"unknown setting {key!r}; the known ones are {', '.join(self.settings)}")
            self.settings[key].check(key, value)
        return {key: setting.default for key, setting in self.settings.items()} | settings


MOST = 1024  # memory for a draft is taken before its first token is drafted
LENGTH = Setting(4, 1, "most tokens that are drafted before the large model checks them", MOST)
BEAMS = Setting(4, 1, "continuations that are drafted at once", MOST)
TAU = Setting(0.5, 0, "least ratio of a block's probabilities under the large and the small model; 0 keeps all")
CHAIN = {"length": LENGTH, "keep_stop_token": Setting(False), "accept": Setting({"name": "Exact"})}
WIDE = {"beams": BEAMS, "length": LENGTH, "tau": TAU, "filtered": Setting(False)}
# A wide, short tree pays most: each level below the first only extends one branch, at a call of the draft.
TREE = {"beams": BEAMS, "length": LENGTH._replace(default=1)}
DECODERS: dict[str, DecoderKind] = {
    "backoff": DecoderKind(
        "decoders.backoff:Backoff",
        "a policy decides who writes",
        {"verify_eos": Setting(True)},
        role="handoff",
        policy="needed",
    ),
    "speculative": DecoderKind(
        "decoders.speculative:from_settings", "a draft that is verified", CHAIN, True, role="stop", policy="optional"
    ),
    "mtad": DecoderKind("decoders.mtad:MTAD", "beams of drafts, of which the likely are kept", WIDE, role="stop"),
    "mmtad": DecoderKind("decoders.mtad:MMTAD", "as mtad, but the large model reads all beams", WIDE, role="stop"),
    "specinfer": DecoderKind("decoders.specinfer:from_settings", "as speculative, by a tree", TREE, True, role="stop"),
    "large": DecoderKind("decoders.autoregressive:Autoregressive", "the large model alone", {}, True, ("large",)),
    "small": DecoderKind("decoders.autoregressive:Autoregressive", "the small model alone", {}, False, ("small",)),
}
"""Every decoder, by its name on the command line, in policy artifacts and in experiments."""


def decoder_kind(name: str) -> DecoderKind:
    """The line of the decoder ``name``. ValueError for an unknown one."""
    if name not in DECODERS:
        raise ValueError(f"unknown method {name!r}; the known ones are {', '.join(DECODERS)}")
    return DECODERS[name]


def build_decoder(models: Sequence, policy, spec):
    """The decoder that ``spec`` (``policies.decoder_spec.DecoderSpec``) names, with its settings.

    ``models`` are those of its line. A decoder that takes no policy is built without ``policy``. ValueError for an
    unknown decoder, or for settings, models or a policy that it cannot have.
    """
    kind = decoder_kind(spec.name)
    if kind.policy == "needed" and policy is None:
        raise ValueError(f"{spec.name} needs a policy")
    alone = len(kind.models) == 1
    asked = [] if kind.policy is None else [policy]
    return kind.load()(models[0] if alone else models, *asked, **kind.checked(spec.settings))
