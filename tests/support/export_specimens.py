"""Policies to export, and the shortest way to do it."""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

from policies import MLP, Logistic, Periodic, Random, Rule
from policies.export.bundle import write_bundle
from policies.export.source import Source, open_source
from policies.export.targets import TARGETS

VOCAB, WIDTH = 40, 6
CLASSES = torch.arange(VOCAB, dtype=torch.uint8) % 16
COLUMNS = ("entropy", "margin", "agreed", "mean_entropy", "last_is_digit")
MODELS = [
    {"name": "small.gguf", "tokenizer": "t", "config": "c0", "weights": "w0", "generation_config": "g"},
    {"name": "large.gguf", "tokenizer": "t", "config": "c1", "weights": "w1", "generation_config": "g"},
]
PROVENANCE = {
    "machine": {"cpu": "one", "threads": 2},
    "splits": {"fit": {"hash": "a"}, "tune": {"hash": "b"}},
    "certificate": {"bound": 0.04},
    "verdict": "fast",
}


def data(n=400, columns=COLUMNS):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(n, len(columns)))
    return x, 1 / (1 + np.exp(-2 * x[:, 0] + x[:, 1])), draw.normal(size=(n, WIDTH))


def logistic():
    x, y, _ = data()
    return Logistic(COLUMNS, classes=CLASSES).fit(x, y)


def mlp(use_hidden=False):
    x, y, hidden = data()
    policy = MLP(COLUMNS, hidden=(8, 5), use_hidden=use_hidden, epochs=3, classes=CLASSES)
    return policy.fit(x, y, hidden=hidden if use_hidden else None)


SPECIMENS = {
    "always": Rule.always,
    "never": Rule.never,
    "rule": lambda: Rule("top1", 0.1, "<="),
    "random": lambda: Random(0.3),
    "periodic": lambda: Periodic(3),
    "logistic": logistic,
    "mlp": mlp,
    "mlp-hidden": lambda: mlp(use_hidden=True),
}


def saved(policy, folder: Path, models=MODELS) -> Path:
    policy.save(folder / "policy.json", models, PROVENANCE)
    return folder / "policy.json"


def source(policy, **options) -> Source:
    policy.models, policy.provenance = MODELS, PROVENANCE
    return Source(policy, {"policy.json": b""}, **options)


def exported(policy, target: str, folder: Path, role="handoff", length=4, models=MODELS, draft=None) -> Path:
    """The folder of an export made from a saved file, as the command does it."""
    path = saved(policy, folder / "saved", models)
    write_bundle(open_source(path, role, length, draft), TARGETS[target], folder / target)
    return folder / target


def use_module_cache(patch, folder):
    """Let transformers copy code to ``folder`` and not to the user's, and forget what it imported from another one."""
    patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
    patch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]
