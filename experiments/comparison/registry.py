"""Every method that can be measured: decoders and acceptance rules by their registries, recipes and controls."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import decoding  # each name is imported when it is used: --help needs no torch
from decoding.acceptance.rules import RULES
from decoding.decoders.registry import DECODERS, LENGTH, build_decoder, decoder_kind


@dataclass(frozen=True)
class Kind:
    """A method: how it is built from [small, large], and its options with their defaults (of a tuple: the first)."""

    about: str
    build: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    role: str = "draft"
    """who decides: "large", "small" and "beam" write alone, "handoff" token by token, "draft" is checked by a target"""
    lossless: bool = False
    """whether what it writes is the large model's own: the same text when greedy, the same distribution when drawn"""


def _decoder(name: str, models, /, **settings):
    from policies.decoder_spec import DecoderSpec

    return build_decoder(models[-len(DECODERS[name].models) :], None, DecoderSpec(name, settings))


def _accepting(rule: str, models, /, length, **settings):
    return _decoder("speculative", models, length=length, accept={"name": rule} | settings)


def _small(models):
    from policies import Rule

    # Not Autoregressive: an answer must end where the large model's configuration ends it.
    return decoding.Backoff(models, Rule.never(), verify_eos=False)


def _beam(models, width):
    from experiments.comparison.beam_search import BeamSearch

    return BeamSearch(models[-1], width)


def _random(models, rate):
    from policies import Random

    return decoding.Backoff(models, Random(rate).to(models[-1].device))


def _policy(models, path):
    from policies import load
    from policies.decoder_spec import spec_of

    policy = load(path, models=[model.identity() for model in models])
    spec = spec_of(policy.provenance)
    if decoder_kind(spec.name).role != "handoff":
        raise ValueError(f"{path} was tuned to end drafts for {spec.name}; give one of a hand-off")
    return build_decoder(models, policy.to(models[-1].device), spec)


def _recipe(name: str, models, length):
    from train.search.recipes import make

    return make(name, models, length=length)


def _options(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a method's text: numbers, words, and as ``verify`` whether distributions are filtered."""
    options = {key: value for key, value in settings.items() if not isinstance(value, bool | dict)}
    if "filtered" in settings:
        options["verify"] = ("filtered", "raw") if settings["filtered"] else ("raw", "filtered")
    return options


def _of_decoder(name: str) -> Kind:
    kind = DECODERS[name]
    role = {"stop": "draft", "handoff": "handoff"}.get(kind.role, name)
    return Kind(kind.about, partial(_decoder, name), _options(kind.checked({})), role, kind.lossless)


def _of_rule(name: str) -> Kind:
    options = {"length": LENGTH.default} | _options(RULES[name].settings)
    return Kind(RULES[name].about, partial(_accepting, name), options)


EXACT = tuple(name.lower() for name, rule in RULES.items() if rule.lossless)
ADDED: dict[str, Kind] = {
    "small": Kind("the small model alone", _small, role="small"),
    "beam": Kind("transformers' own beam search of the large model", _beam, {"width": 4}, "beam"),
    "random": Kind("a coin escalates tokens to the large model", _random, {"rate": 0.5}, "handoff"),
    "policy": Kind("a tuned policy decides which tokens escalate", _policy, {"path": ""}, "handoff"),
    "speculative": Kind(
        "speculative decoding",
        lambda models, length, accept: _accepting(accept.capitalize(), models, length),
        {"length": LENGTH.default, "accept": EXACT},
        lossless=True,
    ),
    "promptlookup": Kind(
        "the text itself is the draft",
        lambda models, length, ngram: decoding.Speculative([decoding.PromptLookup(ngram), models[-1]], length),
        {"length": 4, "ngram": 3},
        lossless=True,
    ),
    "specinfer": Kind(
        "a tree of drafts, verified exactly",
        lambda models, branches: decoding.SpecInfer(models, tuple(map(int, branches.split("-")))),
        {"branches": "4-2-2"},
        lossless=True,
    ),
    "bild": Kind("Big Little Decoder", partial(_recipe, "bild"), {"length": 10}),
    "fsd": Kind("fuzzy speculative decoding", partial(_recipe, "fsd"), {"length": 5}),
    "svip": Kind("draft length by SVIP", partial(_recipe, "svip"), {"length": 40}, lossless=True),
    "adaedl": Kind("draft length by AdaEDL", partial(_recipe, "adaedl"), {"length": 10}, lossless=True),
    "specdec++": Kind("draft length by SpecDec++", partial(_recipe, "specdec++"), {"length": 20}, lossless=True),
}
"""Methods that the registries lack: controls, published settings, and decoders that take other options here."""


def kinds() -> dict[str, Kind]:
    """Every method by name."""
    decoders = {name: _of_decoder(name) for name, kind in DECODERS.items() if kind.policy != "needed"}
    lossy = [name for name, rule in RULES.items() if not rule.lossless and "policy" not in rule.settings]
    return decoders | {name.lower().removesuffix("ratio"): _of_rule(name) for name in lossy} | ADDED
