"""Rollouts of a policy that explores: groups of live texts, their losses and their priced times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from decoding import LM, Backoff
from decoding.cost.costs import ModelCosts
from train.common.generations import write
from train.data.prompts import Prompt
from train.quality.metric import QualityMetric
from train.reinforcement.policy_gradient import Decisions, Explorer
from train.replay.pricing import alone, handoff_seconds
from train.search.goal import Goal


@dataclass
class Rollouts:
    """Writes a group of texts to each of a few prompts a step.

    ``references``: the large model's own answers by prompt id; ``new``: the most tokens of a text.
    """

    small: LM
    large: LM
    metric: QualityMetric
    prompts: list[Prompt]
    references: dict[str, list[int]]
    cost: ModelCosts
    goal: Goal
    count: int
    """prompts a step"""
    group: int
    """texts of a prompt"""
    new: int
    seed: int = 0

    def __call__(self, explorer: Explorer, step: int) -> tuple[Tensor, Tensor, Decisions]:
        """(objective, constraint) [prompts, group] and the decisions of ``step``; seed and step determine the noise."""
        draw = np.random.default_rng([self.seed, step])
        picked = draw.choice(len(self.prompts), min(self.count, len(self.prompts)), replace=False)
        rows = [self.prompts[i] for i in picked for _ in range(self.group)]
        texts = write(Backoff([self.small, self.large], explorer), rows, self.new, seed=self._seed(step, len(rows)))
        measured = [self._measured(prompt, *text) for prompt, text in zip(rows, texts, strict=True)]
        loss, cost = torch.tensor(measured, device=self.large.device).view(len(picked), self.group, 2).unbind(-1)
        lengths = torch.tensor([len(answer) for answer, _ in texts], device=self.large.device)
        if self.goal.budget is None:
            return loss, cost - 1 / self.goal.speedup, explorer.decisions(lengths)
        return cost, loss - self.goal.budget, explorer.decisions(lengths)

    def _measured(self, prompt: Prompt, answer: list[int], writers: list[int]) -> tuple[float, float]:
        """(loss, priced seconds per token relative to the large model alone: the inverse of a speedup)."""
        reference = self.references[prompt.id][: self.new]
        own = alone([prompt], [reference], self.cost)
        taken = handoff_seconds(len(prompt.ids), writers, self.cost.tables) / len(answer)
        return self.metric(prompt, answer, reference)[0], float(taken * own["tokens"][0] / own["seconds"][0])

    def _seed(self, step: int, rows: int) -> int:
        """The seed of a batch. Row r draws with seed + r, so no two texts of a training run share noise."""
        return self.seed + step * rows
