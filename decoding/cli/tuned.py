"""The decoder that a command's options ask for: as its user says, else as the policy was tuned, else the defaults.

The one file of this package that reads policies.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoding.cli.dtypes import DtypeOptions
from decoding.cli.generation_config import without
from decoding.cli.options import ModelOptions, check_policy, settings_of
from decoding.cli.sampling import described, tuned_sampling
from decoding.cli.terminal import visible
from decoding.decoders.registry import build_decoder, decoder_kind

if TYPE_CHECKING:
    from decoding.models.lm import LM
    from decoding.state.sampling import Sampling
    from policies.decoder_spec import DecoderSpec

# torch takes seconds to import, so every function imports what needs it itself.


@dataclass(frozen=True)
class Loaded:
    """The models and the policy that the options name, loaded."""

    names: tuple[str, ...]
    """of the models: small, large"""
    models: list[LM]
    policy: Any
    spec: DecoderSpec

    def decoder(self):
        """The decoder, built."""
        return build_decoder(self.models, self.policy, self.spec)


def load(options: ModelOptions) -> Loaded:
    """Load the models and the policy. ValueError or OSError, one sentence, for what does not fit."""
    spec = spec_for(options)  # before the models are loaded: a broken policy is refused at once
    from rich.console import Console

    from decoding.models.defaults import load_model

    names = decoder_kind(spec.name).models
    with Console(file=sys.stderr).status("loading the models"):
        dtypes, backend = as_tuned(options)
        how = {name: (options.device, dtypes.of(name), backend, options.graphs) for name in names}
        models = [load_model(name, getattr(options, name), *how[name]) for name in names]
    without(models, options.ignore_generation_config)
    policy = load_policy(options, models)
    return Loaded(names, models, policy, spec)


def spec_for(options: ModelOptions) -> DecoderSpec:
    """The decoder with all its settings."""
    from policies.decoder_spec import DecoderSpec, spec_of

    if options.method is not None:
        check_policy(options, options.method)
    policy = load_policy(options)
    tuned = DecoderSpec("speculative") if policy is None else spec_of(policy.provenance)
    name = tuned.name if options.method is None else options.method
    kind = decoder_kind(name)
    # Another decoder than the tuned one keeps the settings that both have.
    kept = {key: value for key, value in tuned.settings.items() if key in kind.settings or name == tuned.name}
    return DecoderSpec(name, kind.checked(kept | settings_of(options, name)))


def as_tuned(options: ModelOptions) -> tuple[DtypeOptions, str]:
    """Dtypes and backend of the models: as the user says, else those that the policy was tuned on, else auto, torch."""
    tuned = [] if options.policy is None else [known.get("dtype") for known in load_policy(options).models]
    backend = options.backend or ("llama.cpp" if tuned and set(tuned) == {"gguf"} else "torch")
    return (options.dtypes.resolved(tuned) if len(tuned) == 2 else options.dtypes), backend


def load_policy(options: ModelOptions, models=None):
    """The policy, if there is one; warnings go to standard error. PolicyError if it does not fit ``models``."""
    if options.policy is None:
        return None
    from policies import load

    identities = None if models is None else [lm.identity() for lm in models]
    with warnings.catch_warnings(record=True) as caught:
        policy = load(options.policy, identities, strict=not options.allow_other_models)
    for warning in caught:
        print(f"warning: {visible(str(warning.message))}", file=sys.stderr)
    return policy.to(options.device)


def sampling_of(options: ModelOptions, lm: LM, policy) -> Sampling:
    """The sampling that the options ask for, by default that of ``policy``; a warning where it differs from that."""
    tuned = None if policy is None else tuned_sampling(policy.provenance)
    found = options.drawing.sampling(lm, tuned)
    if tuned not in (None, found) and not tuned.greedy:
        print(f"warning: the policy was tuned for texts drawn with {described(tuned)}", file=sys.stderr)
    return found


def traffic_log(policy, path: Path):
    """A log of what ``policy`` sees (``policies.traffic_log``). ValueError where nothing can be compared with it."""
    from policies.traffic_log import TrafficLog

    if policy is None:
        raise ValueError("--traffic-log logs what a policy sees; pass --policy too")
    return TrafficLog(policy, path)
