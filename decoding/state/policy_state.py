"""The state that a policy sees of each row of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from decoding.kernels.recorded_steps import RecordedSteps
from decoding.state.sampling import POLICY
from decoding.state.suffix import longest_repeated_suffix
from decoding.state.token_buffer import TokenBuffer
from decoding.step import Policy, PolicyNeeds, Step


class PolicyState:
    """Builds the ``Step`` of one policy from the text and from the larger model's last distribution.

    All state belongs to rows of the batch, none to the policy. ``history`` [batch, window + capacity + 1, k] is stored
    by position like a cache, so rolling back is free: a position is overwritten before a later one reads it.
    """

    def __init__(self, policy: Policy, buffer: TokenBuffer, stream: int = 0):
        batch, device = len(buffer.lengths), buffer.device
        self.policy, self.buffer, self.stream = policy, buffer, POLICY + stream
        self.checked = buffer.prompts.clone()
        self.agreed = torch.full((batch,), torch.nan, device=device)
        self.large_entropy = torch.full((batch,), torch.nan, device=device)
        self.needs = needs = PolicyNeeds.of(policy)
        self.back = torch.arange(needs.window, device=device)
        size = batch, needs.window + buffer.capacity + 1, len(needs.history)
        self.history = torch.full(size, torch.nan, device=device) if needs.history else None
        self.answers = buffer.prompts.unsqueeze(1) + torch.arange(buffer.budget, device=device)
        self.compiled, self.kept = needs.compiled(self), False
        buffer.on_restart.append(self.restart)

    def restart(self, row: int) -> None:
        """Forget the text of a row that begins another one."""
        at = self.buffer.every[row : row + 1]
        prompt, unknown = self.buffer.prompts[at], torch.full((1,), torch.nan, device=at.device)
        self._know(at, {"checked": prompt, "agreed": unknown, "large_entropy": unknown})
        self.answers[row] = (prompt + torch.arange(self.answers.shape[1], device=at.device)).clamp(
            max=self.buffer.capacity - 1
        )
        if self.history is not None:
            self.history[row] = torch.nan

    def keep(self, steps: RecordedSteps) -> None:
        """Hold everything in tensors of ``steps``, which recorded steps read; the policy's numbers too."""
        name = f"policy {self.stream}"
        self.policy = steps.keep_policy(name, self.policy, self.needs.recording)
        self.kept, self.needs = True, PolicyNeeds.of(self.policy)
        places = torch.arange(self.buffer.capacity, device=self.buffer.device)
        self.answers = (self.buffer.prompts.unsqueeze(1) + places).clamp(max=self.buffer.capacity - 1)
        if self.history is not None:
            more = self.needs.window + self.buffer.capacity + 1 - self.history.shape[1]
            self.history = F.pad(self.history, (0, 0, 0, more), value=torch.nan)
        for part in ("checked", "agreed", "large_entropy", "back", "answers", "history"):
            if getattr(self, part) is not None:
                setattr(self, part, steps.keep(f"{name} {part}", getattr(self, part)))
        compiled = self.needs.compiled(self)
        self.compiled = compiled if hasattr(compiled, "keep") else None  # else nothing of it can be recorded
        if self.compiled is not None:
            self.compiled.keep(lambda part, value: steps.keep(f"{name} decision {part}", value))

    def decide(self, logits: Tensor, rows: Tensor, lengths: Tensor, hidden: Tensor | None = None) -> Tensor:
        """bool [r]: the policy's decision on the token after the first ``lengths`` [r] of ``rows`` [r], ascending.

        ``logits`` [r, vocab] and, if the policy needs them, hidden states [r, width] of the model that would write it.
        """
        if self.compiled is not None:
            return self.compiled(logits, rows, lengths, hidden)
        return self.policy(self.step(logits, rows, lengths, hidden))

    def step(self, logits: Tensor, rows: Tensor, lengths: Tensor, hidden: Tensor | None = None) -> Step:
        """The step that ``decide`` shows to the policy; its values are recorded in the history."""
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
            uniform=buffer.uniform(rows, position, self.stream) if self.needs.reads("uniform") else None,
            repeated=self._repeated(ids, rows, position) if self.needs.reads("repeated") else None,
            hidden=hidden,
            shared={},
        )
        if self.history is not None:
            self._record(step, rows, position)
        return step

    def _repeated(self, ids: Tensor, rows: Tensor, position: Tensor) -> Tensor:
        where = self.answers if len(rows) == len(self.answers) else self.answers[rows]
        return longest_repeated_suffix(ids.gather(1, where), position, cached=not self.kept)

    def _record(self, step: Step, rows: Tensor, position: Tensor) -> None:
        step.history = self.history[rows.unsqueeze(1), position.unsqueeze(1) + self.back]
        now = position + self.needs.window
        self.history[rows, now] = self.needs.observe(step).float()
        # The next position may hold the values of a discarded draft.
        self.history[rows, now + 1] = torch.nan

    def forget(self, rows: Tensor, lengths: Tensor) -> None:
        """Erase the history of a discarded decision: that on the token after ``lengths`` [r] of ``rows`` [r]."""
        if self.history is not None:
            self.history[rows, lengths - self.buffer.prompts[rows] + self.needs.window] = torch.nan

    def checked_by_large(self, rows: Tensor, lengths: Tensor, agreed: Tensor, logits: Tensor) -> None:
        """The larger model has read ``rows`` [r] up to ``lengths`` [r]; ``logits`` [r, vocab] are its last ones.

        ``agreed`` [r]: whether its choice was the smaller model's.
        """
        known = {"checked": lengths, "agreed": agreed.float()}
        if self.needs.reads("large_entropy"):
            known["large_entropy"] = entropy(logits)
        self._know(rows, known)

    def _know(self, rows: Tensor, known: dict[str, Tensor]) -> None:
        for name, values in known.items():
            if self.kept:
                getattr(self, name).index_copy_(0, rows, values)
            else:  # not in place: a Step of all rows holds these tensors
                setattr(self, name, getattr(self, name).index_copy(0, rows, values))


def entropy(logits: Tensor) -> Tensor:
    """[...] entropy in nats of the softmax of ``logits`` [..., vocab]."""
    logp = logits.float().log_softmax(-1)
    return torch.special.entr(logp.exp()).sum(-1)
