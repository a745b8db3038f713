"""The steps of a policy, recorded while it decides."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from policies.features.table import feature_columns
from policies.policy import Policy


class StepRecorder:
    """A policy that decides as ``policy`` does and records its steps; give it to a decoder instead."""

    def __init__(self, policy: Policy):
        self.policy = policy
        self.steps: list[list[Tensor]] = []

    def __getattr__(self, name: str):
        return getattr(self.policy, name)

    def __call__(self, step) -> Tensor:
        escalated = self.policy(step)
        table = feature_columns(step, self.policy.names, self.policy.history, self.policy.classes)
        accepted = torch.where(step.since_large == 0, step.agreed.float(), torch.nan)
        self.steps.append([part.detach().cpu() for part in (table, escalated, accepted)])
        return escalated

    def take(self) -> dict[str, np.ndarray]:
        """The steps since the last call, as columns [n] for ``policies.traffic_log.counted``; {} of none."""
        taken, self.steps = self.steps, []
        if not taken:
            return {}
        return step_columns(self.policy.names, *(torch.cat(parts).numpy() for parts in zip(*taken, strict=True)))


def step_columns(names: tuple[str, ...], *parts: np.ndarray) -> dict[str, np.ndarray]:
    """Columns [n] of steps: the features ``names`` of a table [n, names], then what was decided [n].

    ``escalated``: whether the policy said True; ``accepted``: 1 or 0 where the larger model was asked for the token
    before, as it would have written the smaller one's token or not, NaN elsewhere.
    """
    return dict(zip((*names, "escalated", "accepted"), np.column_stack(parts).astype(float).T, strict=True))
