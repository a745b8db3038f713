"""The policy gradient of a hand-off policy: which decisions were drawn, how likely they were, what they were worth.

REINFORCE (Williams 1992) with the mean of a group of rollouts of one prompt as baseline (2402.03300, section 4.1), and
a multiplier for the constraint that is moved by projected ascent. The policy's own score becomes a chance to hand on:
sigmoid((score - threshold) / temperature).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from policies import Policy, feature_columns
from train.common import atomic
from train.common.progress import track

FIXED = ("mean", "scale")
"""Learned from the traces, and no decision of their own."""


@dataclass(frozen=True)
class Decisions:
    """What was decided in a batch of rollouts, as rows [n]."""

    table: Tensor
    """[n, features] what the policy saw"""
    handed: Tensor
    """bool [n]"""
    rollout: Tensor
    """[n] number of the rollout"""


class Explorer:
    """A policy that draws its decisions with the step's own noise, and remembers them.

    A decoder asks it about all open rows at each position, so ``decisions`` can say whose each was.
    """

    def __init__(self, policy: Policy, temperature: float):
        self.policy, self.temperature = policy, temperature
        self.names = (*policy.names, "uniform")  # a decoder makes no noise for who does not name it
        self.history, self.window, self.observe = policy.history, policy.window, policy.observe
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, step) -> Tensor:
        table = feature_columns(step, self.policy.names, self.history, self.policy.classes)
        # Not "uniform < chance", which is False for NaN.
        handed = ~(step.uniform >= torch.sigmoid(logit(self.policy, table, self.temperature)))
        self.seen.append((table, handed))
        return handed

    def decisions(self, lengths: Tensor) -> Decisions:
        """What was decided in the rollouts of ``lengths`` [rollouts] tokens: row r was open at the first lengths[r]."""
        rollout = [torch.nonzero(lengths > t).squeeze(1) for t in range(len(self.seen))]
        tables, handed = (torch.cat(parts) for parts in zip(*self.seen, strict=True))
        return Decisions(tables, handed, torch.cat(rollout))


def logit(policy: Policy, table: Tensor, temperature: float) -> Tensor:
    """[n] log-odds of handing on."""
    return (policy.score_table(table) - policy.threshold) / temperature


def surrogate(policy: Policy, decisions: Decisions, advantages: Tensor, temperature: float) -> Tensor:
    """A number whose gradient is the policy gradient: mean over rollouts of advantage [rollouts] * log-probability."""
    odds = logit(policy, decisions.table, temperature)
    logp = F.logsigmoid(torch.where(decisions.handed, odds, -odds))
    return (advantages[decisions.rollout] * logp).sum() / len(advantages)


@torch.no_grad()
def entropy(policy: Policy, decisions: Decisions, temperature: float) -> float:
    """Nats per decision; near 0 nothing is explored any more."""
    odds = logit(policy, decisions.table, temperature)
    chance = torch.sigmoid(odds)
    return float(-(chance * F.logsigmoid(odds) + (1 - chance) * F.logsigmoid(-odds)).mean())


def group_advantages(reward: Tensor) -> Tensor:
    """[prompts * group] of [prompts, group]: how much better a rollout was than the others of its prompt."""
    return (reward - reward.mean(1, keepdim=True)).flatten()


def projected(multiplier: float, violation: float, rate: float) -> float:
    """The multiplier after one step of dual ascent: it grows while the constraint is violated, and is at least 0."""
    return max(0.0, multiplier + rate * violation)


def weights(policy: Policy) -> Tensor:
    """[n] the weights that are trained, as one vector."""
    return torch.cat([getattr(policy, f"{name}_").flatten() for name in policy.shapes() if name not in FIXED]).clone()


def place(policy: Policy, vector: Tensor) -> None:
    """Let ``policy`` score with ``vector``, as views of it, so that gradients reach it."""
    start = 0
    for name, shape in policy.shapes().items():
        if name not in FIXED:
            size = torch.Size(shape).numel()
            setattr(policy, f"{name}_", vector[start : start + size].view(shape))
            start += size


@dataclass(frozen=True)
class Settings:
    """How to learn."""

    steps: int
    rate: float
    """of Adam, in standardised weights"""
    temperature: float
    """in units of the score"""
    multiplier: float
    """at the start, in units of the objective by units of the constraint"""
    dual_rate: float


Play = Callable[[Explorer, int], tuple[Tensor, Tensor, Decisions]]
"""(rollouts' objective [prompts, group], to be small; constraint, to be at most 0 on average; decisions) of a step."""


def learn(policy: Policy, play: Play, settings: Settings, path: Path) -> tuple[Policy, list[dict]]:
    """``policy`` after training, and its steps: rows of the jsonl ``path``, from which a killed run continues."""
    policy = copy.deepcopy(policy)
    rows = atomic.read_rows(path)
    vector = weights(policy).requires_grad_()
    optimizer = torch.optim.Adam([vector], lr=settings.rate, maximize=True)
    multiplier = rows[-1]["next_multiplier"] if rows else settings.multiplier
    if rows:
        _restore(rows[-1]["state"], vector, optimizer)
    for step in track(range(len(rows), settings.steps), "policy gradient"):
        place(policy, vector.detach())
        objective, constraint, decisions = play(Explorer(policy, settings.temperature), step)
        reward = -(objective + multiplier * constraint)
        place(policy, vector)
        optimizer.zero_grad()
        surrogate(policy, decisions, group_advantages(reward), settings.temperature).backward()
        violation = float(constraint.mean())
        row = {
            "step": step,
            "reward": float(reward.mean()),
            "objective": float(objective.mean()),
            "violation": violation,
            "multiplier": multiplier,
            "entropy": entropy(policy, decisions, settings.temperature),
            "gradient": float(vector.grad.norm()),
        }
        optimizer.step()
        multiplier = projected(multiplier, violation, settings.dual_rate)
        rows.append(row | {"next_multiplier": multiplier, "state": _state(vector, optimizer)})
        atomic.append_rows(path, rows[-1:])
    place(policy, vector.detach().clone())
    return policy, rows


def _state(vector: Tensor, optimizer: torch.optim.Optimizer) -> dict:
    return {"weights": vector.tolist()} | {key: value.tolist() for key, value in optimizer.state[vector].items()}


def _restore(state: dict, vector: Tensor, optimizer: torch.optim.Optimizer) -> None:
    saved = {key: torch.tensor(value, dtype=torch.float32, device=vector.device) for key, value in state.items()}
    with torch.no_grad():
        vector.copy_(saved.pop("weights"))
    optimizer.state[vector] = saved | {"step": saved["step"].cpu()}
