"""Comparison of the models that a policy was fitted on with those it is to serve."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from policies.storage.documents import show
from policies.storage.files import PolicyError

IDENTITY = ("name", "tokenizer", "config", "weights", "generation_config")
"""a model's name, the hashes of its tokenizer, config and weights, and what ends or changes its texts; and, since
models have dtypes of their own, that as "dtype" """


def identities(models: Any) -> list[dict[str, str]]:
    """``models`` unchanged. ValueError unless it is a list of dicts with the strings of ``IDENTITY``."""
    if isinstance(models, list) and all(map(_is_identity, models)):
        return models
    raise ValueError(f"'models' is {show(models)}; it must be a list of dicts with the strings {', '.join(IDENTITY)}")


def compare(path: Path, saved: list[dict[str, str]], live: list[dict[str, str]], strict: bool) -> None:
    """PolicyError for another tokenizer and, if ``strict``, for another config, weights or dtype; else a warning."""
    if len(saved) != len(live):
        raise PolicyError(f"{path}: made for {len(saved)} models, not {len(live)}; pass as many, cheapest first")
    for i, (then, now) in enumerate(zip(saved, live, strict=True)):
        changed = [key for key in IDENTITY[1:] if then[key] != now[key]]
        if not changed:
            _compare_dtypes(path, i, then, now, strict)
            continue
        message = f"{path}: model {i} was {then['name']} and is {now['name']}, with another {' and '.join(changed)}"
        if "tokenizer" in changed:
            raise PolicyError(f"{message}; a policy is tied to its tokenizer, so fit it again for this pair")
        if strict:
            raise PolicyError(f"{message}; fit it again for this pair, or load it with strict=False")
        warnings.warn(f"{message}; its threshold was not measured on this pair", stacklevel=3)


def _compare_dtypes(path: Path, i: int, then: dict[str, str], now: dict[str, str], strict: bool) -> None:
    """As ``compare``; between two float types, which differ by rounding, a warning even if ``strict``.

    An identity of an earlier version has no dtype, which is compared with nothing.
    """
    before, after = then.get("dtype"), now.get("dtype")
    if before == after or before is None or after is None:
        return
    message = f"{path}: model {i}, {then['name']}, was in {before} and is in {after}"
    if strict and not ("float" in before and "float" in after):
        raise PolicyError(f"{message}; load it in {before}, fit the policy again, or load it with strict=False")
    warnings.warn(f"{message}; its threshold was measured in {before}", stacklevel=4)


def _is_identity(model: Any) -> bool:
    return isinstance(model, dict) and all(isinstance(model.get(key), str) for key in IDENTITY)
