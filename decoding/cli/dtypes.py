"""The dtypes of the models' weights as options, the same in every command: each model has its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

DTYPES = ("auto", "file", "int4", "int8", "bfloat16", "float16", "float32")
Dtype = Annotated[str, arg(metavar="{" + ",".join(DTYPES) + "}")]
OwnDtype = Annotated[str | None, arg(metavar="DTYPE", help_behavior_hint="(default: that of --dtype)")]


@dataclass(frozen=True)
class DtypeOptions:
    """Dtypes of the models' weights."""

    dtype: Dtype = "auto"
    """of the weights of both models. file: as many bits as each matrix of a quantised .gguf file has. int4, int8: all
    matrices rounded to so many; a small model in int4 drafts faster. auto: what the files hold, where this machine
    multiplies that faster than float32 (file on x86, bfloat16 on CUDA and CPUs that have it), else float32"""
    small_dtype: OwnDtype = None
    """of the small model's weights"""
    large_dtype: OwnDtype = None
    """of the large model's weights"""

    def check(self) -> None:
        """ValueError, one sentence, for what is no dtype of weights; nothing is read."""
        for name, value in vars(self).items():
            check_dtype(f"--{name.replace('_', '-')}", value)

    def of(self, role: str) -> str:
        """That of the model in the ``role`` "small", "middle" or "large"."""
        own = getattr(self, f"{role}_dtype", None)
        return self.dtype if own is None else own

    def resolved(self, found: Sequence[str | None]) -> DtypeOptions:
        """With the dtypes ``found`` for the small and the large model in place of auto.

        auto may mean another dtype tomorrow or elsewhere, so what it meant is recorded, and loaded again.
        """
        pairs = zip(("small", "large"), found, strict=True)
        chosen = (known if self.of(role) == "auto" and known in DTYPES else self.of(role) for role, known in pairs)
        return DtypeOptions("auto", *chosen)


def weights_line(names: Sequence[str], models: Sequence) -> str:
    """One line on the form of each model's weights in memory: auto may be another dtype elsewhere."""
    return "weights: " + "; ".join(f"{name} {lm.weights_held()}" for name, lm in zip(names, models, strict=True))


def check_dtype(option: str, value: str | None) -> None:
    """ValueError, one sentence, for a ``value`` of ``option`` that is no dtype of weights; None is none given."""
    if value is not None and value not in DTYPES:
        raise ValueError(f"{option} must be one of {', '.join(DTYPES)}, not {value!r}")


Dtypes = Annotated[DtypeOptions, OmitArgPrefixes]
"""a field of a command's settings: its options have no prefix"""
