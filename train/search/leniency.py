"""Leniency as a search space: a rule of ``decoding.acceptance.rules`` and one number.

It holds the rules that differ in greedy decoding, where Block, Typical and all that compare filtered distributions keep
the target's own text, as Exact does. Cascade's "token_v3" is Lenient, its "opt" is "diff", and its "chow" is a stop.
"""

from dataclasses import dataclass, field
from typing import Any

import optuna

from decoding.acceptance.draft_block import Acceptance


@dataclass(frozen=True)
class Leniency:
    """The ``setting`` of a rule that is searched, from ``low`` to ``high``, and its other settings."""

    setting: str
    low: float
    high: float
    fixed: dict[str, Any] = field(default_factory=dict)


EXACT = "Exact"
LENIENT: dict[str, Leniency] = {
    "Lenient": Leniency("lenience", 1e-3, 1.0),
    "Rollback": Leniency("threshold", 0.1, 20.0),
    "Divergence": Leniency("threshold", 0.03, 30.0, {"kind": "kl"}),
    "Cascade": Leniency("alpha", 0.01, 1.0, {"rule": "diff"}),
    "Joint": Leniency("tau", 1e-4, 1.0, {"filtered": False}),
    "FixedRatio": Leniency("tau", 1e-4, 1.0, {"filtered": False}),
}
"""The lossy rules. Ranges reach from nearly exact to accepting nearly everything."""


def suggest(trial: optuna.Trial) -> None:
    """Draw a rule, and its number."""
    name = trial.suggest_categorical("accept", [EXACT, *LENIENT])
    if name != EXACT:
        suggest_number(trial, name)


def suggest_number(trial: optuna.Trial, name: str) -> None:
    """Draw the number of the rule ``name``; every rule has a parameter of its own, as their scales differ."""
    found = LENIENT[name]
    trial.suggest_float(_key(name), found.low, found.high, log=True)


def number(name: str, value: float) -> dict[str, float]:
    """The parameter that ``suggest_number`` would draw."""
    return {_key(name): value}


def drawn(rule: Acceptance) -> dict[str, Any]:
    """The parameters that ``suggest`` would draw for ``rule``."""
    name = type(rule).__name__
    if name == EXACT:
        return {"accept": name}
    return {"accept": name} | number(name, getattr(rule, LENIENT[name].setting))


def described(params: dict[str, Any], name: str) -> dict[str, Any]:
    """The rule ``name`` at the number in ``params``, as ``acceptance.rules.rule`` and a policy's role take it."""
    if name == EXACT:
        return {"name": name}
    return {"name": name, LENIENT[name].setting: params[_key(name)]} | LENIENT[name].fixed


def _key(name: str) -> str:
    return f"{name}.{LENIENT[name].setting}"
