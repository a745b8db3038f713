"""The features that policies read, each defined once as a function of a Step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from operator import attrgetter

import torch
from torch import Tensor

from policies.features.distribution import Distribution, distribution
from policies.features.token_classes import BITS
from policies.features.verification import VERIFICATION

WINDOW = 8  # earlier positions that a moving average covers


class View:
    """A Step with the intermediate results that several features need, each computed once at its first use."""

    def __init__(self, step, history: Sequence[str] = (), classes: Tensor | None = None):
        self.step, self.history, self.classes = step, tuple(history), classes

    @cached_property
    def small(self) -> Distribution:
        """The distribution of the model about to write; kept in ``step.shared`` for the next view of this step."""
        shared = getattr(self.step, "shared", None)
        if shared is None:
            return distribution(self.step.logits)
        return shared.setdefault("distribution", distribution(self.step.logits))

    @cached_property
    def log_probs(self) -> Tensor:
        """[..., vocab] float32, floored at -200, where a probability is 0 in float32: no 0 * -inf in a sum."""
        return torch.log_softmax(self.step.logits.float(), dim=-1).clamp(min=-200.0)

    @cached_property
    def target_log_probs(self) -> Tensor:
        """[..., vocab] of the larger model, with the same floor."""
        if self.step.target_logits is None:
            raise ValueError("features of both models are for drafted tokens that the larger model has read")
        return torch.log_softmax(self.step.target_logits.float(), dim=-1).clamp(min=-200.0)

    @cached_property
    def means(self) -> Tensor:
        """[..., columns of ``step.history``] over the positions where each was known; NaN where it never was."""
        return self.step.history.float().nanmean(dim=-2)

    @cached_property
    def flags(self) -> Tensor:
        """[..., len(BITS)] 0 or 1: the classes of the last token."""
        return (self.classes[self.step.last_token].unsqueeze(-1) & _bits(self.classes.device) != 0).float()


@dataclass(frozen=True)
class Feature:
    """One column: its function of a View, and its requirements."""

    compute: Callable[[View], Tensor]
    averages: str | None = None  # the feature of which it is a moving average
    optional: bool = False  # whether NaN means "not known yet" and may be imputed; else it means broken logits
    needs_classes: bool = False
    needs_target: bool = False  # whether it exists only for drafted tokens that the larger model has read


def _mean(base: str, view: View) -> Tensor:
    """Mean over the positions of the window where ``base`` was known; NaN if it never was."""
    if base not in view.history or view.step.history is None:
        raise ValueError(f"'mean_{base}' needs step.history with a column for {base!r}; it has {view.history}")
    return view.means[..., view.history.index(base)]


@cache
def _bits(device: torch.device) -> Tensor:
    return torch.tensor(tuple(BITS.values()), dtype=torch.uint8, device=device)


def _last_is(name: str, view: View) -> Tensor:
    if view.classes is None:
        raise ValueError(f"'last_is_{name}' needs classes=token_classes(tokenizer), the table of this vocabulary")
    return view.flags[..., tuple(BITS).index(name)]


FEATURES: dict[str, Feature] = {
    "entropy": Feature(attrgetter("small.entropy")),  # in nats: SVIP and AdaEDL stop drafting on it
    "varentropy": Feature(attrgetter("small.varentropy")),  # variance of the surprise -log p, in nats squared
    "top1": Feature(attrgetter("small.top1")),  # largest probability: BiLD's fallback
    "margin": Feature(lambda view: view.small.top[..., 0] - view.small.top[..., 1]),  # of the two largest probabilities
    "top10": Feature(lambda view: view.small.top[..., 0] / view.small.top10_mass),  # llama.cpp compares it with p_min
    "top10_mass": Feature(attrgetter("small.top10_mass")),  # sum of the ten largest probabilities
    "position": Feature(attrgetter("step.position")),
    "since_large": Feature(attrgetter("step.since_large")),
    "repeated": Feature(attrgetter("step.repeated")),
    "agreed": Feature(attrgetter("step.agreed"), optional=True),
    "large_entropy": Feature(attrgetter("step.large_entropy"), optional=True),
    "uniform": Feature(attrgetter("step.uniform")),
    "mean_entropy": Feature(partial(_mean, "entropy"), averages="entropy", optional=True),
    "mean_agreed": Feature(partial(_mean, "agreed"), averages="agreed", optional=True),
    **{f"last_is_{name}": Feature(partial(_last_is, name), needs_classes=True) for name in BITS},
    **{name: Feature(compute, needs_target=True) for name, compute in VERIFICATION.items()},
}


def history_for(names: Sequence[str]) -> tuple[str, ...]:
    """The base features that ``names`` average, in order of first use: the columns of ``step.history``."""
    bases = (FEATURES[name].averages for name in names)
    return tuple(dict.fromkeys(base for base in bases if base is not None))


def feature_columns(step, names: Sequence[str], history: Sequence[str] = (), classes: Tensor | None = None) -> Tensor:
    """The columns ``names`` of a Step, float32 [..., len(names)]; only these are computed.

    ``history`` names the columns of ``step.history`` (``history_for(names)`` lists those needed); ``classes`` is
    ``token_classes(tokenizer)``. Columns in ``step.columns`` are taken from there. NaN logits give NaN; masked logits
    (-inf) are allowed. Raises ValueError for an unknown name, and for a missing history column or class table.
    """
    check_names(names)
    if not names:
        return torch.empty(*step.position.shape, 0, device=step.position.device)
    view, known = View(step, history, classes), getattr(step, "columns", None) or {}
    return torch.stack([known[name] if name in known else FEATURES[name].compute(view) for name in names], dim=-1)


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError at the first name that is not a feature."""
    for name in names:
        if name not in FEATURES:
            raise ValueError(f"unknown feature {name!r}; the known ones are {', '.join(FEATURES)}")
