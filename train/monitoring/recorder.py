"""The steps that a policy saw: recorded while it decides, or read again from texts that it wrote."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from decoding import LM
from policies import Policy, feature_columns, token_classes
from train.data.prompts import Prompt
from train.monitoring.drift import traffic
from train.traces.collect_handoff import trajectory


class StepRecorder:
    """A policy that also keeps what it saw, for ``Monitor``: hand it to a decoder in the policy's place.

    ``take()`` returns the steps since it was last called, as the arguments of ``Monitor.update``.
    """

    def __init__(self, policy: Policy):
        self.policy, self.steps = policy, []

    def __getattr__(self, name: str):
        return getattr(self.policy, name)

    def __call__(self, step) -> torch.Tensor:
        handed = self.policy(step)
        table = feature_columns(step, self.policy.names, self.policy.history, self.policy.classes)
        asked = torch.where(step.since_large == 0, step.agreed.float(), torch.nan)
        self.steps.append([part.detach().cpu() for part in (table, handed, asked)])
        return handed

    def take(self) -> tuple[Sequence[str], np.ndarray, np.ndarray, np.ndarray]:
        """(names, table [n, k], escalated [n], accepted [n])."""
        taken, self.steps = self.steps, []
        if not taken:
            empty = np.zeros(0)
            return self.policy.names, np.zeros((0, len(self.policy.names))), empty, empty
        return self.policy.names, *(torch.cat(parts).numpy() for parts in zip(*taken, strict=True))


def tuned_on(
    small: LM,
    large: LM,
    policy: Policy,
    prompts: Sequence[Prompt],
    texts: Sequence[tuple[list[int], list[int]]],
    references: Sequence[list[int]],
) -> dict:
    """``drift.traffic`` of texts (tokens, who wrote them) of ``policy``: two forwards each read what it had seen."""
    classes, tables, asked, number = token_classes(large.tokenizer), [], [], []
    for i, (prompt, (answer, writers), reference) in enumerate(zip(prompts, texts, references, strict=True)):
        seen = trajectory(small, large, prompt, answer, writers, reference, classes, "policy", np.nan)
        tables.append(np.stack([seen[name] for name in policy.names], 1).astype(np.float32))
        asked.append(np.where(seen["since_large"] == 0, seen["agreed"], np.nan))
        number += [i] * len(answer)
    table = np.concatenate(tables)
    risk = policy.score_table(torch.from_numpy(table).to(policy.threshold.device))
    escalated = (~(risk < policy.threshold)).cpu().numpy()
    return traffic(policy.names, table, escalated, np.concatenate(asked), number)
