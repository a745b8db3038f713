"""Options of sampling, the same in every command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, arg

from decoding.cli.numbers import check_numbers

if TYPE_CHECKING:
    from decoding.state.sampling import Sampling

# torch takes seconds to import, so every function imports what needs it itself and --help does not wait.

AS_TUNED = "(default: 0; with a tuned policy, as it was tuned)"
FILTERS = ("top_k", "top_p", "min_p")


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn."""

    temperature: Annotated[
        float | Literal["model"] | None, arg(metavar="{FLOAT,model}", help_behavior_hint=AS_TUNED)
    ] = None
    """0 takes the likeliest token, 1 draws from the model's distribution, more is more random; model: draw as the
    large model's generation_config says (do_sample, temperature, top_k, top_p, min_p)"""
    top_k: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    """draw from this many of the likeliest tokens"""
    top_p: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: all)")] = None
    """draw from the likeliest tokens that together have this probability"""
    min_p: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: all)")] = None
    """draw from tokens with at least this share of the likeliest token's probability"""

    @property
    def greedy(self) -> bool:
        """True where the likeliest token is taken; False with ``model`` until the model is asked (``resolved``)."""
        return self.temperature is None or self.temperature == 0

    def check(self) -> None:
        """ValueError, one sentence, for numbers that mean nothing; no model is needed."""
        check_numbers(self)
        replace(self, temperature=0.0 if self.temperature == "model" else self.temperature).sampling()

    def sampling(self, lm=None, tuned: Sampling | None = None) -> Sampling:
        """The sampling that these options ask for, of the large model ``lm`` where they say model.

        ``tuned``: that under which a policy was tuned, which holds where no temperature is given.
        """
        from decoding.models.settings import default_sampling
        from decoding.state.sampling import Sampling

        given = {name: value for name in FILTERS if (value := getattr(self, name)) is not None}
        if self.temperature == "model":
            return replace(default_sampling(lm), **given)
        if self.temperature is None:
            return replace(Sampling() if tuned is None else tuned, **given)
        return Sampling(self.temperature, **given)

    def resolved(self, lm) -> SamplingOptions:
        """As numbers: what ``lm`` says in place of model, which another version of its files may say otherwise."""
        found = self.sampling(lm)
        return SamplingOptions(found.temperature, found.top_k, found.top_p, found.min_p)


def described(sampling: Sampling) -> str:
    """The temperature and the filters that are there, in words."""
    found = {name: getattr(sampling, name) for name in ("temperature", *FILTERS)}
    return ", ".join(f"{name} {value:g}" for name, value in found.items() if value is not None)


def tuned_sampling(provenance: Mapping[str, Any]) -> Sampling:
    """The sampling under which a policy was tuned, greedy if its ``provenance`` names none. ValueError for no such."""
    from decoding.state.sampling import Sampling

    try:
        return Sampling(**(provenance.get("sampling") or {}))
    except TypeError as error:
        written = provenance["sampling"]
        raise ValueError(f"the policy's provenance names no sampling but {written!r}; tune it again") from error


Drawing = Annotated[SamplingOptions, OmitArgPrefixes]
"""a field of a command's settings: its options have no prefix"""
