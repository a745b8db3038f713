"""Logistic regression on a few features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.kinds.learned import LearnedPolicy, scaling


class Logistic(LearnedPolicy):
    """sigmoid(coef . standardised features + intercept), so a threshold is a risk in [0, 1].

    ``C`` is scikit-learn's inverse strength of the L2 penalty; ``classes`` is ``token_classes(tokenizer)``, for
    token-class features only. Learned: ``mean_``, ``scale_``, ``coef_`` [features] and ``intercept_``.
    """

    kind = "logistic"

    def __init__(
        self,
        features: Sequence[str] = ("entropy",),
        C: float = 1.0,
        max_iter: int = 1000,
        threshold: float = 0.5,
        classes: Tensor | None = None,
    ):
        super().__init__(features, threshold, classes)
        self.C, self.max_iter = C, max_iter

    def fit(self, x, y, weight=None, groups=None) -> Logistic:
        """Fit columns x [n, features] to soft labels y [n] in [0, 1]; ``weight`` [n] counts rows.

        A soft label becomes two rows, a 1 of weight y and a 0 of weight 1 - y: the cross-entropy is the same.
        ``groups`` is not used; every learned kind takes it. ValueError if the labels are all 0 or all 1.
        """
        from sklearn.linear_model import LogisticRegression

        rows = self._rows(x, y, weight, groups)
        scale = scaling(rows.x)
        z = np.nan_to_num((rows.x - scale["mean"].numpy()) / scale["scale"].numpy(), nan=0.0)
        counts = np.concatenate([rows.weight * rows.y, rows.weight * (1.0 - rows.y)])
        half = len(rows.y)
        if not counts[:half].any() or not counts[half:].any():
            raise ValueError("the labels are all 0 or all 1; there is nothing to tell apart")
        target = np.repeat([1, 0], half)
        used = counts > 0
        model = LogisticRegression(C=self.C, max_iter=self.max_iter)
        model.fit(np.concatenate([z, z])[used], target[used], sample_weight=counts[used])
        coef, intercept = torch.from_numpy(model.coef_[0]), torch.tensor(model.intercept_[0])
        self.set_weights(scale | {"coef": coef, "intercept": intercept})
        return self

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return super().shapes() | {"coef": (len(self.names),), "intercept": ()}

    def numbers(self) -> dict[str, Tensor]:
        return self.weights()

    def _score(self, table: Tensor, hidden: Tensor | None) -> Tensor:
        return torch.sigmoid((table * self.coef_).sum(dim=-1) + self.intercept_)

    def layers(self) -> tuple[list[Tensor], bool]:
        self._require_fit()
        return [self.coef_, self.intercept_], True

    @classmethod
    def from_settings(cls, names: tuple[str, ...], settings: dict[str, Any]) -> Logistic:
        return cls(features=names)
