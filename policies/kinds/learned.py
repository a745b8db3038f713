"""The base class of the learned kinds: a checked training table and its standardisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from policies.features.table import FEATURES
from policies.policy import Policy


class Rows(NamedTuple):
    """A training table: columns [n, f], soft labels [n] in [0, 1], weights [n], group of each row [n]."""

    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray
    groups: np.ndarray


class LearnedPolicy(Policy):
    """A policy with learned weights: the buffers ``mean_``, ``scale_`` and those that ``shapes`` adds.

    An unknown feature (``agreed`` before the first call of the larger model) counts as its training mean. Any other NaN
    comes from broken logits, stays NaN, and escalates.
    """

    def __init__(self, features: Sequence[str], threshold: float, classes: Tensor | None):
        super().__init__(features, threshold, classes)
        self.features = features
        optional = torch.tensor([FEATURES[name].optional for name in self.names], dtype=torch.bool)
        self.register_buffer("_optional", optional, persistent=False)
        for name in self.shapes():
            self.register_buffer(f"{name}_", None)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"mean": (len(self.names),), "scale": (len(self.names),)}

    def weights(self) -> dict[str, Tensor]:
        """Every learned buffer by name. RuntimeError before ``fit``."""
        self._require_fit()
        return {name: getattr(self, f"{name}_") for name in self.shapes()}

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        if "scale" in weights and not (weights["scale"] > 0).all():
            raise ValueError("a scale is not positive; every one must be")
        for name in self.shapes():
            self._fill(f"{name}_", weights[name])

    def _fill(self, name: str, value: Tensor) -> None:
        buffer = getattr(self, name, None)
        value = value.to(self.threshold.device, torch.float32)
        if buffer is not None and buffer.shape == value.shape:
            buffer.copy_(value)  # in place: a captured graph reads the refitted weights
        else:
            self.register_buffer(name, value.clone())

    def _require_fit(self) -> None:
        if self.mean_ is None:
            raise RuntimeError(f"this {self.kind} policy has no weights yet; call fit, or load one")

    def scaling(self) -> tuple[Tensor, Tensor, Tensor]:
        self._require_fit()
        return self.mean_, self.scale_, self._optional

    def _scaled(self, table: Tensor) -> Tensor:
        self._require_fit()
        z = (table - self.mean_) / self.scale_
        return torch.where(self._optional & z.isnan(), 0.0, z)  # 0 is the training mean

    def _rows(self, x, y, weight=None, groups=None) -> Rows:
        """The training table as float64; each row is a group of its own by default. ValueError for a wrong table."""
        x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        n = len(y)
        weight = np.ones(n) if weight is None else np.asarray(weight, dtype=np.float64)
        groups = np.arange(n) if groups is None else np.asarray(groups)
        if x.shape != (n, len(self.names)) or y.shape != weight.shape or y.shape != groups.shape:
            shapes = f"x {x.shape}, y {y.shape}, weight {weight.shape}, groups {groups.shape}"
            raise ValueError(f"the shapes are {shapes}; they must be [n, {len(self.names)}] and then [n]")
        if not ((y >= 0) & (y <= 1)).all():
            raise ValueError("a label is outside [0, 1]; labels are risks")
        if not ((weight >= 0) & np.isfinite(weight)).all() or weight.sum() == 0:
            raise ValueError("the weights must be finite, not negative, and not all 0")
        for column, name in zip(x.T, self.names, strict=True):
            if np.isinf(column).any() or (np.isnan(column).any() and not FEATURES[name].optional):
                raise ValueError(f"the feature {name!r} is not finite in some row; drop the rows with broken logits")
        return Rows(x, y, weight, groups)


def scaling(x: np.ndarray) -> dict[str, Tensor]:
    """Mean and standard deviation of the finite numbers of each column of x [n, f]; 1 for a constant column."""
    known = np.isfinite(x)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, x, 0.0).sum(axis=0) / count
    scale = np.sqrt((np.where(known, x - mean, 0.0) ** 2).sum(axis=0) / count)
    scale = np.where(scale > 1e-6 * np.maximum(np.abs(mean), 1.0), scale, 1.0)
    return {"mean": torch.from_numpy(mean).float(), "scale": torch.from_numpy(scale).float()}
