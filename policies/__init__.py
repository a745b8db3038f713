"""Decision functions: one risk, one threshold, one answer per row."""

# ruff: noqa: F401, for this is the package's interface

from policies.features.table import FEATURES, feature_columns, history_for
from policies.features.token_classes import token_classes
from policies.kinds.controls import Periodic, Random
from policies.kinds.logistic import Logistic
from policies.kinds.margins import Margins
from policies.kinds.mlp import MLP
from policies.kinds.momentum import Momentum
from policies.kinds.rule import Rule
from policies.kinds.survival import Survival
from policies.loading import KINDS, load
from policies.policy import Policy
from policies.storage.files import PolicyError
