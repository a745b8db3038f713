"""Decision functions: one risk, one threshold, one answer per row."""

from policies.classes import token_classes
from policies.controls import Periodic, Random
from policies.features import FEATURES, features, history_for
from policies.files import PolicyError
from policies.loading import KINDS, load
from policies.logistic import Logistic
from policies.margins import Margins
from policies.mlp import MLP
from policies.momentum import Momentum
from policies.policy import Policy
from policies.rule import Rule
from policies.survival import Survival

__all__ = [
    "FEATURES",
    "KINDS",
    "MLP",
    "Logistic",
    "Margins",
    "Momentum",
    "Periodic",
    "Policy",
    "PolicyError",
    "Random",
    "Rule",
    "Survival",
    "features",
    "history_for",
    "load",
    "token_classes",
]
