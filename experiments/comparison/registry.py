"""Every method that can be measured: how it is built from a pair of models, and what it can be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Kind:
    """How a method is built from [small, large], and its options with their defaults (of a tuple: the first)."""

    about: str
    build: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    role: str = "draft"
    """who decides: "large", "small" and "beam" write alone, "handoff" token by token, "draft" is checked by a target"""
    lossless: bool = False
    """whether what it writes is the large model's own: the same text when greedy, the same distribution when drawn"""


def _large(models):
    from decoding import Autoregressive

    return Autoregressive(models[-1])


def _small(models):
    from decoding import Backoff
    from policies import Rule

    # Not Autoregressive: an answer ends where the large model's configuration ends it.
    return Backoff(models, Rule.never(), verify_eos=False)


def _beam(models, width):
    from experiments.comparison.beam_search import BeamSearch

    return BeamSearch(models[-1], width)


def _random(models, rate):
    from decoding import Backoff
    from policies import Random

    return Backoff(models, Random(rate).to(models[-1].device))


def _policy(models, path):
    from decoding import Backoff
    from policies import load

    policy = load(path, models=[model.identity() for model in models])
    return Backoff(models, policy.to(models[-1].device))


def _speculative(models, length, accept):
    return _rule(accept.capitalize())(models, length)


def _prompt_lookup(models, length, ngram):
    from decoding import PromptLookup, Speculative

    return Speculative([PromptLookup(ngram), models[-1]], length)


def _rule(name: str) -> Callable:
    def make(models, length, **settings):
        from decoding import Speculative
        from decoding.acceptance.rules import RULES

        return Speculative(models, length, accept=RULES[name](**settings))

    return make


def _recipe(name: str) -> Callable:
    def make(models, length):
        from train.search.recipes import make as recipe

        return recipe(name, models, length=length)

    return make


def _mtad(tree: bool) -> Callable:
    def make(models, **settings):
        from decoding import MTAD

        return MTAD(models, tree=tree, **settings)

    return make


def _specinfer(models, branches):
    from decoding import SpecInfer

    return SpecInfer(models, tuple(int(n) for n in branches.split("-")))


FILTERED, RAW = ("filtered", "raw"), ("raw", "filtered")
BEAMS = {"beams": 4, "length": 4, "tau": 0.5, "verify": RAW}
CASCADES = ("token_v3", "token_v2", "token_v1", "opt", "diff", "chow")
KINDS: dict[str, Kind] = {
    "large": Kind("the large model alone", _large, role="large", lossless=True),
    "small": Kind("the small model alone", _small, role="small"),
    "beam": Kind("transformers' own beam search of the large model", _beam, {"width": 4}, "beam"),
    "random": Kind("a coin hands tokens to the large model", _random, {"rate": 0.5}, "handoff"),
    "policy": Kind("a tuned policy does", _policy, {"path": ""}, "handoff"),
    "speculative": Kind(
        "speculative decoding", _speculative, {"length": 4, "accept": ("exact", "block")}, "draft", lossless=True
    ),
    "promptlookup": Kind("the text itself is the draft", _prompt_lookup, {"length": 4, "ngram": 3}, lossless=True),
    "specinfer": Kind("a tree of drafts, verified exactly", _specinfer, {"branches": "4-2-2"}, lossless=True),
    "mtad": Kind("multi-token assisted decoding", _mtad(False), BEAMS),
    "mmtad": Kind("the same with a tree", _mtad(True), BEAMS),
    "joint": Kind("MTAD's rule without beams", _rule("Joint"), {"length": 4, "tau": 0.5, "verify": FILTERED}),
    "fixed": Kind("p / q > tau, token by token", _rule("FixedRatio"), {"length": 4, "tau": 0.5, "verify": FILTERED}),
    "typical": Kind("Medusa's acceptance", _rule("Typical"), {"length": 4, "epsilon": 0.09, "delta": 0.3}),
    "lenient": Kind("lenient speculative sampling", _rule("Lenient"), {"length": 4, "lenience": 0.5}),
    "divergence": Kind(
        "keeps where the models' distributions are close",
        _rule("Divergence"),
        {"length": 4, "kind": ("kl", "reverse_kl", "js", "tv"), "threshold": 0.95, "verify": RAW},
    ),
    "cascade": Kind("speculative cascades", _rule("Cascade"), {"length": 4, "rule": CASCADES, "alpha": 0.3}),
    "rollback": Kind("BiLD's acceptance alone", _rule("Rollback"), {"length": 4, "threshold": 5.0}),
    "bild": Kind("Big Little Decoder", _recipe("bild"), {"length": 10}),
    "fsd": Kind("fuzzy speculative decoding", _recipe("fsd"), {"length": 5}),
    "svip": Kind("draft length by SVIP", _recipe("svip"), {"length": 40}, lossless=True),
    "adaedl": Kind("draft length by AdaEDL", _recipe("adaedl"), {"length": 10}, lossless=True),
    "specdec++": Kind("draft length by SpecDec++", _recipe("specdec++"), {"length": 20}, lossless=True),
}
"""Every method by name."""
