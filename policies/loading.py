"""Load a saved policy, and refuse a file that would decide differently from the policy that was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.features.table import FEATURES
from policies.kinds.controls import Periodic, Random
from policies.kinds.logistic import Logistic
from policies.kinds.margins import Margins
from policies.kinds.mlp import MLP
from policies.kinds.momentum import Momentum
from policies.kinds.rule import Always, Never, Rule
from policies.policy import SCHEMA, Policy
from policies.storage.documents import show
from policies.storage.files import PolicyError, is_number, read, read_tensors, verify
from policies.storage.identity import compare, identities

KINDS: dict[str, type[Policy]] = {
    kind.kind: kind for kind in (Always, Never, Rule, Random, Periodic, Momentum, Margins, Logistic, MLP)
}


def load(path: str | Path, models: list[dict[str, str]] | None = None, strict: bool = True) -> Policy:
    """The policy saved at ``path``, on the CPU, with the ``models`` and ``provenance`` it was saved with.

    ``models``: identities of the models it is to serve, in order. Another tokenizer is refused; another config or other
    weights are refused if ``strict``, else a warning. A file that names no models fits all.
    Raises PolicyError, one sentence, for a file that no ``save`` of this version or an earlier one wrote.
    """
    path = Path(path)
    document = read(path)
    try:
        policy = _build(document)
        _fill(policy, document, read_tensors(path, document.get("tensors")))
        policy.models = identities(document.get("models", []))
        policy.provenance = _typed(document.get("provenance", {}), dict, "'provenance'", "an object")
        verify(path, document)
    except PolicyError:
        raise
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{path}: {error}") from error
    if models is not None and policy.models:
        compare(path, policy.models, identities(models), strict)
    return policy


def _build(document: dict) -> Policy:
    schema, kind, threshold = (document.get(key) for key in ("schema", "kind", "threshold"))
    if type(schema) is not int or schema < 1:
        raise ValueError(f"'schema' is {show(schema)}; it must be a whole number from 1 to {SCHEMA}")
    if schema > SCHEMA:
        raise ValueError(f"schema {show(schema)} is newer than the {SCHEMA} this version reads; update this package")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"unknown kind {show(kind)}; the known ones are {', '.join(KINDS)}")
    if not is_number(threshold):
        raise ValueError(f"'threshold' is {show(threshold)}; it must be a finite number")
    names = tuple(_typed(document.get("features"), list, "'features'", "a list of names"))
    for name in names:
        if not isinstance(name, str) or name not in FEATURES:
            raise ValueError(f"unknown feature {show(name)}; the known ones are {', '.join(FEATURES)}")
    policy = _from_settings(KINDS[kind], names, document.get("settings", {}))
    if policy.names != names:
        raise ValueError(f"'features' is {show(list(names))}; a {kind} policy reads {show(list(policy.names))}")
    for key, right in (("history", list(policy.history)), ("window", policy.window)):
        if document.get(key, right) != right:
            raise ValueError(f"{key!r} is {show(document[key])}; for these features it must be {right}")
    return policy.with_threshold(threshold)


def _from_settings(kind: type[Policy], names: tuple[str, ...], settings: Any) -> Policy:
    _typed(settings, dict, "'settings'", "an object")
    try:
        policy = kind.from_settings(names, settings)
    except KeyError as error:
        raise ValueError(f"'settings' is {show(settings)}; a {kind.kind} policy needs {error}") from error
    except (TypeError, OverflowError) as error:  # text, null, a list or 10**400 in place of a number
        raise ValueError(f"'settings' is {show(settings)}; a {kind.kind} policy cannot have them ({error})") from error
    if policy.settings() != settings:
        raise ValueError(f"'settings' is {show(settings)}; a {kind.kind} policy has {show(policy.settings())}")
    return policy


def _fill(policy: Policy, document: dict, tensors: dict[str, Tensor]) -> None:
    numbers = _typed(document.get("weights", {}), dict, "'weights'", "an object")
    found = {name: _tensor(name, value) for name, value in numbers.items()} | tensors
    shapes = policy.shapes()
    for name, shape in shapes.items():
        if name not in found:
            raise ValueError(f"the weight {name!r} is missing; a {policy.kind} policy needs {', '.join(shapes)}")
        _check_weight(name, found[name], shape)
    policy.set_weights({name: found[name] for name in shapes})
    if policy.needs_classes:
        policy.classes = _class_table(found.get("classes"))


def _check_weight(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"the weight {name!r} has shape {list(value.shape)}; it must be {show(list(shape))}")
    if value.dtype != torch.float32 or not value.isfinite().all():
        raise ValueError(f"the weight {name!r} is {value.dtype}, or not finite; it must be finite float32")


def _tensor(name: str, value: Any) -> Tensor:
    numbers = value if isinstance(value, list) else [value]
    if not all(is_number(number) for number in numbers):
        raise ValueError(f"the weight {show(name)} is {show(value)}; it must be a number or a list of numbers")
    return torch.from_numpy(np.asarray(value, dtype=np.float64)).float()


def _class_table(table: Tensor | None) -> Tensor:
    if table is None or table.dtype != torch.uint8 or table.ndim != 1 or not len(table):
        raise ValueError("the token-class features need a table; a uint8 tensor 'classes' [vocab] must be saved")
    return table


def _typed(value: Any, type_: type, what: str, right: str) -> Any:
    if isinstance(value, type_):
        return value
    raise ValueError(f"{what} is {show(value)}; it must be {right}")
