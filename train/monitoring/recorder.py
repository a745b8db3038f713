"""The steps of a policy, recorded while it decides, or rebuilt from texts that it wrote."""

import numpy as np
import torch

from decoding import LM
from policies import Policy, feature_columns, token_classes
from train.data.prompts import Prompt
from train.monitoring.drift import traffic
from train.traces.collect_handoff import trajectory


class StepRecorder:
    """A policy that decides as ``policy`` does and records its steps for ``Monitor``; give it to a decoder instead."""

    def __init__(self, policy: Policy):
        self.policy, self.steps = policy, []

    def __getattr__(self, name: str):
        return getattr(self.policy, name)

    def __call__(self, step) -> torch.Tensor:
        escalated = self.policy(step)
        table = feature_columns(step, self.policy.names, self.policy.history, self.policy.classes)
        accepted = torch.where(step.since_large == 0, step.agreed.float(), torch.nan)
        self.steps.append([part.detach().cpu() for part in (table, escalated, accepted)])
        return escalated

    def take(self) -> dict[str, np.ndarray]:
        """The steps since the last call, as columns for ``Monitor.update``."""
        taken, self.steps = self.steps, []
        return _columns(self.policy, *(torch.cat(parts).numpy() for parts in zip(*taken, strict=True)))


def traffic_of_texts(
    small: LM, large: LM, policy: Policy, prompts: list[Prompt], texts: list[tuple], references: list[list[int]]
) -> dict:
    """``drift.traffic`` of texts (token ids, writers) of ``policy``; both models read each text once.

    ``references`` are the large model's own answers.
    """
    classes, tables, accepted, number = token_classes(large.tokenizer), [], [], []
    for i, (prompt, (answer, writers), reference) in enumerate(zip(prompts, texts, references, strict=True)):
        seen = trajectory(small, large, prompt, answer, writers, reference, classes)
        tables.append(np.stack([seen[name] for name in policy.names], 1).astype(np.float32))
        accepted.append(np.where(seen["since_large"] == 0, seen["agreed"], np.nan))
        number += [i] * len(answer)
    table = np.concatenate(tables)
    risk = policy.score_table(torch.from_numpy(table).to(policy.threshold.device))
    escalated = (~(risk < policy.threshold)).cpu().numpy()
    return traffic(_columns(policy, table, escalated, np.concatenate(accepted)), np.array(number))


def _columns(policy: Policy, *parts: np.ndarray) -> dict[str, np.ndarray]:
    names = (*policy.names, "escalated", "accepted")
    return dict(zip(names, np.column_stack(parts).astype(float).T, strict=True))
