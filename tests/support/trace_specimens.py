"""Hand-off traces without models, and timing tables to price them."""

import numpy as np

from decoding.cost.costs import ModelCosts
from policies.features.token_classes import BITS
from train.traces.handoff_traces import FEATURE_COLUMNS, Traces

COST = ModelCosts(({1: 1.0, 4: 1.5, 16: 4.0}, {1: 4.0, 4: 5.0, 16: 10.0}))


def made_up(prompts=12, tokens=20, seed=0):
    """Traces in which entropy tells regret and some features are unknown at the start of each trajectory."""
    draw = np.random.default_rng(seed)
    n = prompts * tokens
    columns = {name: draw.random(n).astype(np.float32) for name in FEATURE_COLUMNS}
    columns |= {f"last_is_{name}": draw.integers(0, 2, n).astype(np.float32) for name in BITS}
    columns["position"] = np.tile(np.arange(tokens), prompts)
    start = columns["position"] == 0
    for name in ("agreed", "large_entropy", "mean_entropy", "mean_agreed"):
        columns[name] = np.where(start, np.float32(np.nan), columns[name])
    columns |= {
        "prompt": np.repeat([f"p{i}" for i in range(prompts)], tokens),
        "group": np.repeat([f"g{i}" for i in range(prompts)], tokens),
        "trajectory": np.array(["mixed"] * n),
        "prompt_tokens": np.full(n, 8),
        "regret": 4 * columns["entropy"] ** 2 + 0.1 * draw.random(n),
        "small_repeats": np.zeros(n, bool),
        "large_repeats": np.zeros(n, bool),
        "small_ends": np.zeros(n, bool),
        "large_ends": np.zeros(n, bool),
        "kl": draw.random(n),
        "small_token": draw.integers(0, 2, n),
        "large_token": np.zeros(n, int),
    }
    return Traces(columns)
