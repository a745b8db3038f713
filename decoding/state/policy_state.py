"""What happened so far in each row, as far as a policy may see it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from decoding.state.sampling import POLICY
from decoding.state.token_buffer import TokenBuffer
from decoding.step import Step

Policy = Callable[[Step], Tensor]


class PolicyState:
    """Builds the ``Step`` of one policy from the text and from what the larger model last said.

    All of it belongs to rows of the batch, nothing to the policy. ``history`` is stored by position like a cache, so
    rolling back is free: a position is written again before anything later reads it.
    """

    def __init__(self, policy: Policy, buffer: TokenBuffer, stream: int = 0):
        batch, device = len(buffer.lengths), buffer.device
        self.policy, self.buffer, self.stream = policy, buffer, POLICY + stream
        self.checked = buffer.prompts.clone()
        self.agreed = torch.full((batch,), torch.nan, device=device)
        self.large_entropy = torch.full((batch,), torch.nan, device=device)
        self.window = getattr(policy, "window", 0)
        self.back = torch.arange(self.window, device=device)
        columns = len(getattr(policy, "history", ()))
        size = self.window + buffer.capacity + 1
        self.history = torch.full((batch, size, columns), torch.nan, device=device) if columns else None
        self.needs_hidden = getattr(policy, "needs_hidden", False)
        self.answers = buffer.prompts.unsqueeze(1) + torch.arange(buffer.budget, device=device)
        # Of the class: who wraps a policy and passes on what he lacks wants to be asked himself.
        watch = getattr(type(policy), "watch", None)
        self.watch = None if watch is None else watch(policy, self)

    def decide(self, logits: Tensor, rows: Tensor, lengths: Tensor, hidden: Tensor | None = None) -> Tensor:
        """bool [r]: what the policy says of ``rows`` [r], ascending, about to write the token after ``lengths`` [r].

        ``logits`` [r, vocab] and, where it ``needs_hidden``, hidden states [r, width] of the model that would write it.
        """
        if self.watch is not None:
            return self.watch(logits, rows, lengths, hidden)
        return self.policy(self.step(logits, rows, lengths, hidden))

    def step(self, logits: Tensor, rows: Tensor, lengths: Tensor, hidden: Tensor | None = None) -> Step:
        """The step that ``decide`` is about."""
        buffer, agreed, large_entropy, checked = self.buffer, self.agreed, self.large_entropy, self.checked
        prompts, ids = buffer.prompts, buffer.ids
        if len(rows) < len(checked):
            prompts, ids, checked = prompts[rows], ids[rows], checked[rows]
            agreed, large_entropy = agreed[rows], large_entropy[rows]
        position = lengths - prompts
        step = Step(
            logits=logits,
            position=position,
            since_large=lengths - checked,
            agreed=agreed,
            large_entropy=large_entropy,
            last_token=ids.gather(1, (lengths - 1).unsqueeze(1)).squeeze(1),
            uniform=buffer.uniform(rows, position, self.stream) if self._reads("uniform") else None,
            repeated=self._repeated(ids, rows, position) if self._reads("repeated") else None,
            hidden=hidden,
            shared={},
        )
        if self.history is not None:
            self._remember(step, rows, position)
        return step

    def _reads(self, name: str) -> bool:
        """Whether the policy looks at what is too dear for nothing; one that does not say so may look at anything."""
        return name in getattr(self.policy, "names", (name,))

    def _repeated(self, ids: Tensor, rows: Tensor, position: Tensor) -> Tensor:
        where = self.answers if len(rows) == len(self.answers) else self.answers[rows]
        return longest_repeated_suffix(ids.gather(1, where), position)

    def _remember(self, step: Step, rows: Tensor, position: Tensor) -> None:
        step.history = self.history[rows.unsqueeze(1), position.unsqueeze(1) + self.back]
        now = position + self.window
        self.history[rows, now] = self.policy.observe(step).float()
        # The next position may have been seen in a draft that was dropped; it is unknown until it is seen again.
        self.history[rows, now + 1] = torch.nan

    def forget(self, rows: Tensor, lengths: Tensor) -> None:
        """What the policy saw of ``rows`` [r] after ``lengths`` [r] tokens, it was not asked about."""
        if self.history is not None:
            self.history[rows, lengths - self.buffer.prompts[rows] + self.window] = torch.nan

    def checked_by_large(self, rows: Tensor, lengths: Tensor, agreed: Tensor, logits: Tensor) -> None:
        """The larger model has spoken: ``rows`` are checked up to ``lengths``, ``logits`` [r, vocab] is its last."""
        # Not in place: the steps of all rows hold these very tensors.
        self.checked = self.checked.index_copy(0, rows, lengths)
        self.agreed = self.agreed.index_copy(0, rows, agreed.float())
        if self._reads("large_entropy"):
            self.large_entropy = self.large_entropy.index_copy(0, rows, entropy(logits))


def longest_repeated_suffix(answers: Tensor, lengths: Tensor, limit: int = 8) -> Tensor:
    """[r] length of the longest end of ``answers`` [r, n], cut to ``lengths`` [r], that occurs earlier in it too."""
    ends, back, where, inside = _suffix_windows(answers.shape[1], limit, answers.device)
    last = lengths.unsqueeze(1) - 1
    tail = answers.gather(1, (last - back).clamp_(min=0))
    same = answers[:, where] == tail.unsqueeze(1)
    same &= inside & (ends < last).unsqueeze(2)
    return same.cumprod(-1).sum(-1).amax(1)


@lru_cache(maxsize=8)
def _suffix_windows(size: int, limit: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ends [size], steps back [limit], and for each end where those lead [size, limit], and whether there is a token.

    They are the same at every step, and a dozen small operations are much of what a decision costs.
    """
    ends, back = torch.arange(size, device=device), torch.arange(limit, device=device)
    where = ends.unsqueeze(1) - back
    return ends, back, where.clamp(min=0), where >= 0


def entropy(logits: Tensor) -> Tensor:
    """[...] entropy in nats of the softmax of ``logits`` [..., vocab]."""
    logp = logits.float().log_softmax(-1)
    return torch.special.entr(logp.exp()).sum(-1)
