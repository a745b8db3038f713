"""What happened so far in each row, as far as a policy may see it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from decoding.sampling import POLICY
from decoding.step import Step
from decoding.text import Text

Policy = Callable[[Step], Tensor]


class Trail:
    """Builds the ``Step`` of one policy from the text and from what the larger model last said.

    All of it belongs to rows of the batch, nothing to the policy. ``history`` is stored by position like a cache, so
    rolling back is free: a position is written again before anything later reads it.
    """

    def __init__(self, policy: Policy, text: Text, stream: int = 0):
        batch, device = len(text.lengths), text.device
        self.policy, self.text, self.stream = policy, text, POLICY + stream
        self.checked = text.prompts.clone()
        self.agreed = torch.full((batch,), torch.nan, device=device)
        self.large_entropy = torch.full((batch,), torch.nan, device=device)
        self.window = getattr(policy, "window", 0)
        columns = len(getattr(policy, "history", ()))
        size = self.window + text.capacity + 1
        self.history = torch.full((batch, size, columns), torch.nan, device=device) if columns else None
        self.needs_hidden = getattr(policy, "needs_hidden", False)

    def step(self, logits: Tensor, rows: Tensor, lengths: Tensor, hidden: Tensor | None = None) -> Step:
        """The step of ``rows`` [r] that are about to write the token after ``lengths`` [r] tokens."""
        position = lengths - self.text.prompts[rows]
        step = Step(
            logits=logits,
            position=position,
            since_large=lengths - self.checked[rows],
            agreed=self.agreed[rows],
            large_entropy=self.large_entropy[rows],
            last_token=self.text.ids[rows, lengths - 1],
            uniform=self.text.uniform(rows, position, self.stream) if self._reads("uniform") else None,
            repeated=self._repeated(rows, position) if self._reads("repeated") else None,
            hidden=hidden,
        )
        if self.history is not None:
            self._remember(step, rows, position)
        return step

    def _reads(self, name: str) -> bool:
        """Whether the policy looks at what is too dear for nothing; one that does not say so may look at anything."""
        return name in getattr(self.policy, "names", (name,))

    def _repeated(self, rows: Tensor, position: Tensor) -> Tensor:
        where = self.text.prompts[rows, None] + torch.arange(self.text.budget, device=position.device)
        return repeated(self.text.ids[rows[:, None], where], position)

    def _remember(self, step: Step, rows: Tensor, position: Tensor) -> None:
        earlier = position[:, None] + torch.arange(self.window, device=position.device)
        step.history = self.history[rows[:, None], earlier]
        self.history[rows, position + self.window] = self.policy.observe(step).float()
        # The next position may have been seen in a draft that was dropped; it is unknown until it is seen again.
        self.history[rows, position + self.window + 1] = torch.nan

    def checked_by_large(self, rows: Tensor, lengths: Tensor, agreed: Tensor, logits: Tensor) -> None:
        """The larger model has spoken: ``rows`` are checked up to ``lengths``, ``logits`` [r, vocab] is its last."""
        self.checked[rows] = lengths
        self.agreed[rows] = agreed.float()
        if self._reads("large_entropy"):
            self.large_entropy[rows] = entropy(logits)


def repeated(answers: Tensor, lengths: Tensor, limit: int = 8) -> Tensor:
    """[r] length of the longest end of ``answers`` [r, n], cut to ``lengths`` [r], that occurs earlier in it too."""
    back = torch.arange(limit, device=answers.device)
    ends = torch.arange(answers.shape[1], device=answers.device)
    last = lengths[:, None] - 1 - back
    tail = answers.gather(1, last.clamp(min=0))
    where = ends[:, None] - back
    same = answers[:, where.clamp(min=0)] == tail[:, None]
    same &= (where >= 0) & (last >= 0)[:, None] & (ends < lengths[:, None] - 1)[..., None]
    return same.long().cumprod(-1).sum(-1).amax(1)


def entropy(logits: Tensor) -> Tensor:
    """[...] entropy in nats of the softmax of ``logits`` [..., vocab]."""
    logp = logits.float().log_softmax(-1)
    return torch.special.entr(logp.exp()).sum(-1)
