"""The base class of every policy: a risk, a threshold, and a file."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from policies.features.device_path import DevicePolicy, can_launch
from policies.features.fast_path import CompiledPolicy, can_compile
from policies.features.table import FEATURES, WINDOW, check_names, feature_columns, history_for
from policies.storage.files import PolicyError, short, write
from policies.storage.identity import identities

SCHEMA = 1


class Policy(nn.Module):
    """Decides row by row whether the cheap choice is too risky: True escalates a hand-off and ends a draft.

    A kind is a subclass with a ``kind`` and a ``_score``, listed in ``policies.loading.KINDS``. ``names`` are the
    features it reads; ``threshold`` is in units of its score. Its tensors are buffers: ``.to(device)`` moves them to
    where the logits are. It keeps no state between steps, and nothing but ``fit`` changes it.

    Raises ValueError for an unknown feature or a threshold of NaN.
    """

    kind: ClassVar[str]
    needs_hidden = False
    threshold: Tensor

    def __init__(self, names: Sequence[str], threshold: float, classes: Tensor | None = None):
        super().__init__()
        check_names(names)
        self.names = tuple(names)
        self.models: list[dict[str, str]] = []
        self.provenance: dict[str, Any] = {}
        self.register_buffer("threshold", _threshold(threshold))
        self.register_buffer("classes", classes if self.needs_classes else None)

    def _score(self, table: Tensor, hidden: Tensor | None) -> Tensor:
        """Risk [...] of ``_scaled`` columns [..., len(names)] and, if ``needs_hidden``, hidden states [..., width]."""
        raise NotImplementedError

    def _scaled(self, table: Tensor) -> Tensor:
        """Columns [..., len(names)], standardised for ``_score``."""
        return table

    def scaling(self) -> tuple[Tensor, Tensor, Tensor]:
        """The means that ``_scaled`` subtracts, its divisors, and where NaN becomes 0; [len(names)] each."""
        n = len(self.names)
        return torch.zeros(n), torch.ones(n), torch.zeros(n, dtype=torch.bool)

    @property
    def needs_classes(self) -> bool:
        return any(FEATURES[name].needs_classes for name in self.names)

    @property
    def needs_target(self) -> bool:
        """Whether it reads what the larger model says of a drafted token, so that it can only accept drafts."""
        return any(FEATURES[name].needs_target for name in self.names)

    @property
    def history(self) -> tuple[str, ...]:
        """The features that the decoder records at every position: the columns of ``step.history``."""
        return history_for(self.names)

    @property
    def window(self) -> int:
        """Number of earlier positions that ``step.history`` covers."""
        return WINDOW if self.history else 0

    def observe(self, step) -> Tensor:
        """The values recorded at this position, float32 [..., len(history)]."""
        return feature_columns(step, self.history, classes=self.classes)

    def score(self, step) -> Tensor:
        """Risk [...] that the cheap choice is not good enough, float32; higher is riskier."""
        table = feature_columns(step, self.names, self.history, self.classes)
        return self.score_table(table, step.hidden if self.needs_hidden else None)

    def score_table(self, table, hidden=None) -> Tensor:
        """``score`` from computed columns [..., len(names)], an array or a tensor. ValueError for another width."""
        table = torch.as_tensor(table, dtype=torch.float32)
        if table.shape[-1] != len(self.names):
            raise ValueError(f"a table of {table.shape[-1]} columns; this policy reads {len(self.names)}: {self.names}")
        return self._score(self._scaled(table), None if hidden is None else torch.as_tensor(hidden))

    def forward(self, step) -> Tensor:
        """bool [...]: True where score >= threshold, or where the score is NaN."""
        return self.exceeds(self.score(step))

    def exceeds(self, score: Tensor) -> Tensor:
        """bool [...]: ``forward`` from a score [...]."""
        return ~(score < self.threshold)  # not "score >= threshold", which is False for NaN

    def compiled(self, state) -> CompiledPolicy | DevicePolicy | None:
        """A compiled equivalent of ``forward`` on the steps of ``state``, a decoder's ``PolicyState``; or None."""
        if self._own_way:
            return None
        if can_launch(self, state):
            return DevicePolicy(self, state)
        return CompiledPolicy(self, state) if can_compile(self, state) else None

    def layers(self) -> tuple[list[Tensor], bool] | None:
        """The score as a network: weights and biases of a linear layer, before it of one of SiLU units if there is one,
        and whether a sigmoid follows; None if it is no such network of the features alone."""
        return None

    @property
    def recording(self) -> tuple | None:
        """Equal for policies that decide by the same operations, on buffers of the same shapes; None if it cannot tell.

        A decision recorded for one of them is that of another once the buffers are copied: whatever a policy reads
        besides must be in its settings, as plain attributes.
        """
        return None if self._own_way else tuple(map(_operations, self.modules()))

    @property
    def _own_way(self) -> bool:
        return any(getattr(type(self), name) is not getattr(Policy, name) for name in ("forward", "score", "observe"))

    def with_threshold(self, threshold: float) -> Self:
        """A copy that decides by ``threshold``, which may be infinite. ValueError for NaN.

        It shares no buffer with this policy. A CUDA graph captured around a policy reads the buffers of that policy;
        ``policy.threshold.copy_(other.threshold)`` gives it another threshold.
        """
        policy = copy.deepcopy(self)
        policy.threshold.copy_(_threshold(threshold))
        return policy

    def describe(self) -> str:
        """One line for a person."""
        reads = [*self.names, "the hidden state"] if self.needs_hidden else self.names
        return f"{self.kind} on {', '.join(reads)}: escalate when risk >= {self.threshold.item():.4g}"

    def settings(self) -> dict[str, Any]:
        """Constructor arguments that the file holds besides names, threshold and weights."""
        return {}

    @classmethod
    def from_settings(cls, names: tuple[str, ...], settings: dict[str, Any]) -> Policy:
        """A policy without weights or threshold. ValueError, TypeError or KeyError for wrong ``settings``."""
        return cls(**settings)

    def numbers(self) -> dict[str, Tensor]:
        """Weights that the JSON holds, for they are few."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Weights that the safetensors file holds."""
        return {}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight, by name."""
        return {}

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Take weights that match ``shapes``. ValueError for values that no fit gives."""

    def save(
        self, path: str | Path, models: list[dict[str, str]] | None = None, provenance: dict | None = None
    ) -> None:
        """Write ``path`` (policy.json), and a .safetensors beside it for ``tensors`` and token classes.

        ``models``: identities (name and hashes of tokenizer, config and weights), which ``load`` compares;
        ``provenance``: anything JSON takes. Both default to those the policy was loaded with. Settings of the fit
        (C, epochs ...) are not kept: they belong to the provenance. PolicyError when it cannot be written.
        """
        path = Path(path)
        try:
            document = self._document(models, provenance)
        except ValueError as error:
            raise PolicyError(f"{path}: not written, because {error}") from error
        table = {} if self.classes is None else {"classes": self.classes}
        write(path, document, self.tensors() | table)

    def _document(self, models: list[dict[str, str]] | None, provenance: dict | None) -> dict[str, Any]:
        if not math.isfinite(self.threshold.item()):
            raise ValueError("the threshold is infinite; save Rule.always() or Rule.never()")
        if self.needs_classes and self.classes is None:
            raise ValueError("the token-class features need a table; set classes=token_classes(tokenizer)")
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "features": list(self.names),
            "threshold": short(self.threshold.item()),
            "history": list(self.history),
            "window": self.window,
            "settings": self.settings(),
            "weights": {name: short(value.tolist()) for name, value in self.numbers().items()},
            "models": identities(self.models if models is None else models),
            "provenance": self.provenance if provenance is None else provenance,
        }


def _operations(module: nn.Module) -> tuple:
    """What is not in the buffers of a module; learned attributes end in _."""
    plain = bool | int | float | str | tuple
    settings = {name: value for name, value in vars(module).items() if isinstance(value, plain) and name[-1] != "_"}
    buffers = [(name, tuple(buffer.shape), buffer.dtype) for name, buffer in module.named_buffers(recurse=False)]
    return type(module), tuple(sorted(settings.items())), tuple(buffers)


def _threshold(value: float) -> Tensor:
    value = float(value)
    if math.isnan(value):
        raise ValueError("a threshold of NaN compares with no score; use a number")
    return torch.zeros((), dtype=torch.float32).fill_(value)
