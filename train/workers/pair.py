"""The pair of models that shards are made with: in the driver the job's own, in a worker loaded from its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from decoding import LM
from decoding.cli.dtypes import DtypeOptions
from decoding.cli.sampling import SamplingOptions
from train.quality.metric import QualityMetric


@dataclass(frozen=True)
class PairSource:
    """The settings by which another process loads the same pair; see those of the main job."""

    small: str | None = None
    large: str | None = None
    device: str = "cpu"
    backend: str = "torch"
    ignore_generation_config: str = ""
    dtypes: DtypeOptions = field(default_factory=DtypeOptions)
    drawing: SamplingOptions = field(default_factory=SamplingOptions)
    alone: bool = False
    """whether the large model is all that is needed"""

    @classmethod
    def of(cls, settings) -> Self:
        """Of a job's settings, whose dtypes are resolved: "auto" may be another one elsewhere."""
        return cls(**{name: getattr(settings, name) for name in cls.__dataclass_fields__ if name != "alone"})


@dataclass(frozen=True)
class Pair:
    """Models, cheapest first, and what judges their texts (None: made where it is needed)."""

    models: Sequence[LM]
    metric: QualityMetric | None = None

    def identities(self) -> list[dict[str, str]]:
        """What tells that another process has loaded the same models."""
        return [lm.identity() for lm in self.models]
