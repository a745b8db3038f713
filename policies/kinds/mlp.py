"""A small network on features and, optionally, the model's last hidden state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from policies.kinds.learned import LearnedPolicy, Rows, scaling
from policies.storage.documents import show


class MLP(LearnedPolicy):
    """sigmoid of a SiLU network with layers of the widths ``hidden``, fitted by AdamW with early stopping.

    ``use_hidden`` adds the last hidden state of the model about to write, normalised per row. ``validation`` is the
    share of groups held out to choose the epoch; 0 runs all ``epochs``. Learned: ``mean_``, ``scale_``, ``weight0_``,
    ``bias0_`` ...; ``validation_loss_`` in nats. Only ``seed`` matters: no global generator is read or changed.
    """

    kind = "mlp"

    def __init__(
        self,
        features: Sequence[str] = ("entropy",),
        hidden: Sequence[int] = (32,),
        use_hidden: bool = False,
        epochs: int = 200,
        batch_size: int = 1024,
        lr: float = 3e-3,
        weight_decay: float = 1e-2,
        patience: int = 10,
        validation: float = 0.1,
        seed: int = 0,
        threshold: float = 0.5,
        classes: Tensor | None = None,
    ):
        self.hidden, self.use_hidden = hidden, use_hidden
        self.hidden_width_ = 0
        super().__init__(features, threshold, classes)
        self.epochs, self.batch_size, self.lr, self.weight_decay = epochs, batch_size, lr, weight_decay
        self.patience, self.validation, self.seed = patience, validation, seed

    @property
    def needs_hidden(self) -> bool:
        return self.use_hidden

    def fit(self, x, y, weight=None, groups=None, hidden=None) -> MLP:
        """Fit columns x [n, features] and hidden states [n, width] to soft labels y [n] in [0, 1].

        ``groups`` [n]: rows of one group (a prompt) stay on one side of the validation split. It runs on the policy's
        device. ValueError if ``hidden`` is missing, or if there is only one group to split.
        """
        rows = self._rows(x, y, weight, groups)
        states = self._states(hidden, len(rows.y))
        self.hidden_width_ = states.shape[-1]
        scale = scaling(rows.x)
        for name, value in scale.items():
            self._fill(f"{name}_", value)
        with torch.inference_mode(False), torch.enable_grad():
            table = torch.from_numpy(rows.x).float().to(self.threshold.device)
            layers = self._train(self._inputs(self._scaled(table), states), rows)
        names = [name for name in self.shapes() if name not in scale]
        self.set_weights(scale | dict(zip(names, layers, strict=True)))
        return self

    def _states(self, hidden, n: int) -> Tensor:
        if not self.use_hidden:
            return torch.empty(n, 0, device=self.threshold.device)
        states = None if hidden is None else torch.as_tensor(hidden)
        if states is None or states.ndim != 2 or len(states) != n:
            raise ValueError(f"use_hidden=True needs hidden states of shape [{n}, width]")
        return states.to(self.threshold.device)

    def _inputs(self, table: Tensor, states: Tensor | None) -> Tensor:
        if not self.use_hidden:
            return table
        if states is None:
            raise ValueError("this policy reads hidden states and was given none")
        # Normalising per row needs no statistics, and a row depends on no other.
        return torch.cat([table, F.layer_norm(states.float(), states.shape[-1:])], dim=-1)

    def _train(self, inputs: Tensor, rows: Rows) -> list[Tensor]:
        """The weights of the epoch that is best on the held-out groups; of the last epoch if none are held out."""
        generator = torch.Generator().manual_seed(self.seed)
        held = _held_out(rows.groups, self.validation, generator)
        y, weight = (torch.from_numpy(value).float().to(inputs.device) for value in (rows.y, rows.weight))
        layers = _initial(self._widths(), generator, inputs.device)
        optimizer = torch.optim.AdamW(layers, lr=self.lr, weight_decay=self.weight_decay)
        train, best, waited = torch.from_numpy(np.flatnonzero(~held)), math.inf, 0
        check = torch.from_numpy(np.flatnonzero(held)).to(inputs.device)
        kept = layers
        for _ in range(self.epochs):
            for batch in train[torch.randperm(len(train), generator=generator)].split(self.batch_size):
                batch = batch.to(inputs.device)
                optimizer.zero_grad()
                _loss(layers, inputs[batch], y[batch], weight[batch]).backward()
                optimizer.step()
            if not len(check):
                continue
            with torch.no_grad():
                loss = _loss(layers, inputs[check], y[check], weight[check]).item()
            waited = 0 if loss < best else waited + 1
            if loss < best:
                best, kept = loss, [layer.detach().clone() for layer in layers]
            if waited >= self.patience:
                break
        self.validation_loss_ = best if len(check) else None
        return [layer.detach() for layer in kept]

    def _widths(self) -> list[int]:
        return [len(self.names) + self.hidden_width_, *self.hidden, 1]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = super().shapes()
        for i, (before, after) in enumerate(pairwise(self._widths())):
            shapes |= {f"weight{i}": (after, before), f"bias{i}": (after,)}
        return shapes

    def tensors(self) -> dict[str, Tensor]:
        return self.weights()

    def _score(self, table: Tensor, hidden: Tensor | None) -> Tensor:
        inputs = self._inputs(table, hidden)
        layers = [getattr(self, f"{kind}{i}_") for i in range(len(self.hidden) + 1) for kind in ("weight", "bias")]
        return torch.sigmoid(_logit(layers, inputs))

    def layers(self) -> tuple[list[Tensor], bool] | None:
        self._require_fit()
        if self.use_hidden or len(self.hidden) > 1:
            return None
        return [getattr(self, f"{kind}{i}_") for i in range(len(self.hidden) + 1) for kind in ("weight", "bias")], True

    def settings(self) -> dict[str, Any]:
        return {"hidden": list(self.hidden), "hidden_width": self.hidden_width_}

    @classmethod
    def from_settings(cls, names: tuple[str, ...], settings: dict[str, Any]) -> MLP:
        hidden, width = settings["hidden"], settings["hidden_width"]
        if not isinstance(hidden, list) or not all(type(value) is int and value > 0 for value in hidden):
            raise ValueError(f"'hidden' is {show(hidden)}; it must be a list of layer widths")
        if type(width) is not int or width < 0:
            raise ValueError(f"'hidden_width' is {show(width)}; it must be a whole number")
        policy = cls(features=names, hidden=tuple(hidden), use_hidden=width > 0)
        policy.hidden_width_ = width
        return policy


def _initial(widths: list[int], generator: torch.Generator, device: torch.device) -> list[Tensor]:
    layers = []
    for before, after in pairwise(widths):
        bound = 1.0 / math.sqrt(max(before, 1))
        weight = torch.empty(after, before).uniform_(-bound, bound, generator=generator)
        layers += [weight.to(device), torch.zeros(after, device=device)]
    return [layer.requires_grad_() for layer in layers]


def _logit(layers: list[Tensor], x: Tensor) -> Tensor:
    *inner, weight, bias = layers
    for inner_weight, inner_bias in zip(inner[::2], inner[1::2], strict=True):
        x = F.silu(F.linear(x, inner_weight, inner_bias))
    return F.linear(x, weight, bias).squeeze(-1)


def _loss(layers: list[Tensor], x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    losses = F.binary_cross_entropy_with_logits(_logit(layers, x), y, reduction="none")
    return (losses * weight).sum() / weight.sum().clamp(min=1e-12)


def _held_out(groups: np.ndarray, share: float, generator: torch.Generator) -> np.ndarray:
    """bool [n]: rows whose group is among the ``share`` of groups held out, at least one when share > 0."""
    names, index = np.unique(groups, return_inverse=True)
    if share == 0:
        return np.zeros(len(groups), dtype=bool)
    if len(names) < 2:
        raise ValueError("one group cannot be split; give more groups, or validation=0")
    count = min(max(round(share * len(names)), 1), len(names) - 1)
    return np.isin(index, torch.randperm(len(names), generator=generator)[:count].numpy())
