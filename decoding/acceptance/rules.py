"""The registry of acceptance rules: a new rule is a file and a line here."""

from __future__ import annotations

from decoding.registry import Entry

RULES: dict[str, Entry] = {
    "Exact": Entry("acceptance.lossless:Exact", "speculative sampling", lossless=True),
    "Block": Entry("acceptance.lossless:Block", "block verification", lossless=True),
    "Lenient": Entry("acceptance.lossy:Lenient", "lenient speculative sampling", {"lenience": 0.5}),
    "Typical": Entry("acceptance.lossy:Typical", "Medusa's acceptance", {"epsilon": 0.09, "delta": 0.3}),
    "Divergence": Entry(
        "acceptance.lossy:Divergence",
        "keeps where the models' distributions are close",
        {"kind": "kl", "threshold": 0.95, "filtered": False},
    ),
    "Cascade": Entry("acceptance.cascade:Cascade", "speculative cascades", {"rule": "token_v3", "alpha": 0.3}),
    "Rollback": Entry("acceptance.lossy:Rollback", "BiLD's acceptance alone", {"threshold": 5.0}),
    "Joint": Entry("acceptance.lossy:Joint", "MTAD's rule without beams", {"tau": 0.5, "filtered": True}),
    "FixedRatio": Entry("acceptance.lossy:FixedRatio", "p / q > tau, token by token", {"tau": 0.5, "filtered": True}),
    "Learned": Entry("acceptance.learned:Learned", "a policy judges each drafted token", {"policy": None}),
}
"""Every rule; all but ``Learned``, which needs a policy, can be built from numbers and words."""


def rule(name: str = "", **settings):
    """The rule called ``name``. ValueError, one sentence, for an unknown one or settings that it cannot have."""
    if name not in RULES:
        raise ValueError(f"unknown acceptance rule {name!r}; the known ones are {', '.join(RULES)}")
    try:
        return RULES[name].load()(**settings)
    except TypeError as error:
        raise ValueError(f"the acceptance rule {name} cannot have {settings}: {error}") from error
