"""Published methods by name: a policy that ends the draft and a rule that accepts it, at their papers' settings.

    make("bild", [small, large])                    # a decoder
    make("svip", [small, large], length=8)          # with another setting of Speculative

A method is a pair of decisions of this project, so its thresholds can be tuned like any other; the settings here are
those of the papers or of the authors' code, for their models and not for yours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from decoding import Divergence, Exact, Rollback, Speculative
from policies import Rule, Survival


@dataclass(frozen=True)
class Recipe:
    """A paper, and the options of ``Speculative`` that make it; built anew for every decoder."""

    paper: str
    lossless: bool
    options: Callable[[], dict[str, Any]]
    differs: str = ""  # how the paper's method differs from this one


def _svip(threshold: float = 0.3, c: float = 0.15) -> Rule:
    # sqrt(c H) > h rises with the entropy H of the draft, so it is H > h ** 2 / c: 0.6 nats.
    return Rule("entropy", threshold**2 / c)


def _adaedl(threshold: float = 0.5, gamma: float = 0.2) -> Rule:
    # 1 - sqrt(gamma H), a lower bound on acceptance, falls below the threshold where H > (1 - threshold) ** 2 / gamma.
    return Rule("entropy", (1 - threshold) ** 2 / gamma)


RECIPES: dict[str, Recipe] = {
    "bild": Recipe(
        paper="Big Little Decoder (Kim et al. 2302.07863), fallback 0.6 and rollback 5",
        lossless=False,
        options=lambda: {"length": 10, "stop": Rule("top1", 0.6, "<="), "accept": Rollback(5.0)},
        differs="the paper's large model writes the first token and reads twice after a rollback; and an end that the "
        "small model writes is not checked there",
    ),
    "fsd": Recipe(
        paper="Fuzzy Speculative Decoding (Holsman et al. 2502.20704), KL(small || large) up to 0.95 nats",
        lossless=False,
        options=lambda: {"length": 5, "accept": Divergence("kl", 0.95)},
    ),
    "svip": Recipe(
        paper="SVIP (Zhang et al. 2411.18462): stop after a token whose sqrt(0.15 entropy) exceeds 0.3",
        lossless=True,
        options=lambda: {"length": 40, "stop": _svip(), "keep_stop_token": True, "accept": Exact()},
    ),
    "adaedl": Recipe(
        paper="AdaEDL (Agrawal et al. 2410.18351): stop where 1 - sqrt(0.2 entropy) falls below 0.5",
        lossless=True,
        options=lambda: {"length": 10, "stop": _adaedl(), "accept": Exact()},
        differs="the paper starts its threshold anywhere from 0.3 to 0.9 and moves it with the acceptance rate; here "
        "it stays, and is tuned beforehand",
    ),
    "specdec++": Recipe(
        paper="SpecDec++ (Huang et al. 2405.19715): 2 to 20 tokens, stop when a rejection is likelier than 0.7",
        lossless=True,
        options=lambda: {"length": 20, "stop": Survival(), "keep_stop_token": True, "accept": Exact()},
        differs="the paper predicts acceptance with a trained head; here, unless you pass "
        "stop=Survival(fitted policy), it is the draft's largest probability",
    ),
}


def make(name: str, models: Sequence, **changes) -> Speculative:
    """The decoder of a recipe; ``changes`` are options of ``Speculative``. ValueError for an unknown name."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; the known ones are {', '.join(RECIPES)}")
    return Speculative(models, **(RECIPES[name].options() | changes))
