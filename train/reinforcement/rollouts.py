"""Rollouts of a policy that explores: groups of live texts, their losses and their priced times."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from decoding import Backoff
from train.common.generations import write
from train.common.load_run import FinishedRun
from train.data.prompts import Prompt
from train.reinforcement.policy_gradient import Decisions, Explorer
from train.replay.pricing import alone, handoff_seconds


@dataclass
class Rollouts:
    """Writes a group of texts to each of a few prompts a step, with the models of the finished run ``found``."""

    found: FinishedRun
    prompts: list[Prompt]
    count: int  # prompts a step
    group: int  # texts of a prompt
    new: int  # most tokens of a text
    seed: int

    def __post_init__(self) -> None:
        own = {p.id: self.found.traces.of({p.id}, "large")["token"].tolist() for p in self.prompts}
        sampled = self.found.metric.sampled
        sampled = None if sampled is None else replace(sampled, budget=self.new, kept={})
        self.metric = replace(self.found.metric, budget=self.new, sampled=sampled, judged={}, own={})
        self.references = {name: answer[: self.new] for name, answer in own.items()}

    def __call__(self, explorer: Explorer, step: int) -> tuple[Tensor, Tensor, Decisions]:
        """(objective, constraint) [prompts, group] and the decisions of ``step``; seed and step determine the noise."""
        draw = np.random.default_rng([self.seed, step])
        picked = draw.choice(len(self.prompts), min(self.count, len(self.prompts)), replace=False)
        rows = [self.prompts[i] for i in picked for _ in range(self.group)]
        # Row r draws with seed + r, so no two texts of a training run share noise.
        seed = self.seed + step * len(rows)
        texts = write(Backoff(self.found.models, explorer), rows, self.new, self.found.sampling, seed)
        measured = [self._measured(prompt, *text) for prompt, text in zip(rows, texts, strict=True)]
        goal, device = self.found.goal, self.found.large.device
        loss, cost = torch.tensor(measured, device=device).view(len(picked), self.group, 2).unbind(-1)
        decisions = explorer.decisions(torch.tensor([len(answer) for answer, _ in texts], device=device))
        if goal.budget is None:
            return loss, cost - 1 / goal.speedup, decisions
        return cost, loss - goal.budget, decisions

    def _measured(self, prompt: Prompt, answer: list[int], writers: list[int]) -> tuple[float, float]:
        """(loss, priced seconds per token relative to the large model alone: the inverse of a speedup)."""
        reference, cost = self.references[prompt.id], self.found.cost
        own = alone([prompt], [reference], cost)
        taken = handoff_seconds(len(prompt.ids), writers, cost) / len(answer)
        return self.metric(prompt, answer, reference)[0], float(taken * own["tokens"][0] / own["seconds"][0])
