"""A constrained policy gradient for hand-off policies.

REINFORCE (Williams 1992) with the mean of a group of rollouts of one prompt as the baseline (2402.03300, section 4.1),
and a Lagrange multiplier of the constraint that moves by projected dual ascent. While it is trained, the policy
escalates with probability sigmoid((score - threshold) / temperature).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from policies import Policy, feature_columns
from policies.storage.documents import FileError
from train.common import atomic
from train.common.progress import track
from train.common.rows import StepRow

FIXED = ("mean", "scale")  # parameters that are not trained: they standardise the features


@dataclass(frozen=True)
class Decisions:
    """The n decisions of a batch of rollouts."""

    table: Tensor  # [n, features]
    escalated: Tensor  # bool [n]
    rollout: Tensor  # [n] index of the rollout


class Explorer:
    """A policy that draws its decisions with the noise of the step, and records them.

    A decoder calls it once per position for all open rows, so ``decisions`` can tell the rollout of each.
    """

    def __init__(self, policy: Policy, temperature: float):
        self.policy, self.temperature = policy, temperature
        self.names = (*policy.names, "uniform")  # ``uniform`` is computed only if listed
        self.history, self.window, self.observe = policy.history, policy.window, policy.observe
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, step) -> Tensor:
        table = feature_columns(step, self.policy.names, self.history, self.policy.classes)
        # Not "uniform < probability", which is False for NaN.
        escalated = ~(step.uniform >= torch.sigmoid(logit(self.policy, table, self.temperature)))
        self.seen.append((table, escalated))
        return escalated

    def decisions(self, lengths: Tensor) -> Decisions:
        """All decisions; rollout r was open at the first ``lengths[r]`` positions, for ``lengths`` [rollouts]."""
        rollout = [torch.nonzero(lengths > t).squeeze(1) for t in range(len(self.seen))]
        tables, escalated = (torch.cat(parts) for parts in zip(*self.seen, strict=True))
        return Decisions(tables, escalated, torch.cat(rollout))


def logit(policy: Policy, table: Tensor, temperature: float) -> Tensor:
    """[n] log-odds of escalation."""
    return (policy.score_table(table) - policy.threshold) / temperature


def surrogate(policy: Policy, decisions: Decisions, advantages: Tensor, temperature: float) -> Tensor:
    """The mean over rollouts of advantage [rollouts] * log-probability; its gradient is the policy gradient."""
    odds = logit(policy, decisions.table, temperature)
    logp = F.logsigmoid(torch.where(decisions.escalated, odds, -odds))
    return (advantages[decisions.rollout] * logp).sum() / len(advantages)


@torch.no_grad()
def entropy(policy: Policy, decisions: Decisions, temperature: float) -> float:
    """Mean entropy of a decision in nats; near 0, exploration has ended."""
    odds = logit(policy, decisions.table, temperature)
    probability = torch.sigmoid(odds)
    return float(-(probability * F.logsigmoid(odds) + (1 - probability) * F.logsigmoid(-odds)).mean())


def weights(policy: Policy) -> Tensor:
    """[n] the trained weights as one vector, copied."""
    return torch.cat([getattr(policy, f"{name}_").flatten() for name in policy.shapes() if name not in FIXED]).clone()


def set_weights(policy: Policy, vector: Tensor) -> None:
    """Make the trained weights of ``policy`` views of ``vector``, so that its score has a gradient there."""
    start = 0
    for name, shape in policy.shapes().items():
        if name not in FIXED:
            size = torch.Size(shape).numel()
            setattr(policy, f"{name}_", vector[start : start + size].view(shape))
            start += size


@dataclass(frozen=True)
class Settings:
    """Settings of the training."""

    steps: int
    rate: float  # learning rate of Adam, in units of standardised weights
    temperature: float  # in units of the score
    multiplier: float  # at the start, in units of the objective per unit of the constraint
    dual_rate: float


Play = Callable[[Explorer, int], tuple[Tensor, Tensor, Decisions]]
"""A step's (objective [prompts, group], to be minimised; constraint, to be at most 0 on average; decisions)."""


def learn(policy: Policy, play: Play, settings: Settings, path: Path) -> tuple[Policy, list[dict]]:
    """``policy`` after training, and its steps: rows of the jsonl ``path``, from which a killed run continues.

    FloatingPointError where a weight is no finite number any more; such a step is not written.
    """
    policy = copy.deepcopy(policy)
    rows = atomic.read_rows(path, StepRow)
    if [row["step"] for row in rows] != list(range(len(rows))):
        raise FileError(path, "steps are missing, or there twice", "delete it to train anew")
    vector = weights(policy).requires_grad_()
    optimizer = torch.optim.Adam([vector], lr=settings.rate, maximize=True)
    multiplier = rows[-1]["next_multiplier"] if rows else settings.multiplier
    if rows:
        _restore(rows[-1]["state"], vector, optimizer)
    for step in track(range(len(rows), settings.steps), "policy gradient"):
        set_weights(policy, vector.detach())
        objective, constraint, decisions = play(Explorer(policy, settings.temperature), step)
        reward = -(objective + multiplier * constraint)
        set_weights(policy, vector)
        optimizer.zero_grad()
        advantages = (reward - reward.mean(1, keepdim=True)).flatten()
        surrogate(policy, decisions, advantages, settings.temperature).backward()
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
        if not vector.isfinite().all():
            raise FloatingPointError("the training has diverged; take a smaller --lr or --dual-rate")
        multiplier = max(0.0, multiplier + settings.dual_rate * violation)
        rows.append(row | {"next_multiplier": multiplier, "state": _state(vector, optimizer)})
        atomic.append_rows(path, rows[-1:])
    set_weights(policy, vector.detach().clone())
    return policy, rows


def _state(vector: Tensor, optimizer: torch.optim.Optimizer) -> dict:
    return {"weights": vector.tolist()} | {key: value.tolist() for key, value in optimizer.state[vector].items()}


def _restore(state: dict, vector: Tensor, optimizer: torch.optim.Optimizer) -> None:
    saved = {key: torch.tensor(value, dtype=torch.float32, device=vector.device) for key, value in state.items()}
    with torch.no_grad():
        vector.copy_(saved.pop("weights"))
    optimizer.state[vector] = saved | {"step": saved["step"].cpu()}
