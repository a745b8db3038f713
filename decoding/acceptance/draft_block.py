"""The drafted block that an acceptance rule reads, and the operations that rules share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from decoding.state.sampling import Sampling, sample_from_weights


@dataclass(slots=True)
class DraftBlock:
    """r rows of at most k drafted tokens; p is the target's distribution, q the draft's, as in the papers.

    ``filtered`` distributions are those from which tokens are drawn, after temperature, top-k, top-p and min-p;
    unfiltered ones are the softmax of the logits.
    """

    tokens: Tensor  # [r, k] drafted ids
    lengths: Tensor  # [r] tokens of each draft; later columns are padding
    draft_logits: Tensor  # [r, k, vocab] of the draft model; 0 and -inf for a draft without a model
    target_logits: Tensor  # [r, k + 1, vocab] of the target at the same positions and the next one
    sampling: Sampling
    accept_noise: Tensor  # [r, k] in [0, 1), to accept or reject each token
    next_noise: Tensor  # [r, k + 1] to draw the token after 0 ... k accepted ones
    policy_noise: Tensor  # [r, k] ``Step.uniform`` of each token
    starts: Tensor  # [r] length of the answer before the draft
    before: Tensor  # [r] the token before the draft

    def probabilities(self) -> tuple[Tensor, Tensor]:
        """p [r, k + 1, vocab] and q [r, k, vocab], filtered."""
        return self.sampling.probabilities(self.target_logits), self.sampling.probabilities(self.draft_logits)

    def log_probabilities(self, filtered: bool) -> tuple[Tensor, Tensor]:
        """log p and log q [r, k, vocab] of the drafted positions; -inf outside a filter."""
        p, q = self.target_logits[:, :-1], self.draft_logits
        return log_probabilities(p, self.sampling, filtered), log_probabilities(q, self.sampling, filtered)

    def log_ratio(self, filtered: bool) -> Tensor:
        """[r, k] log p(x) / q(x) of the drafted tokens x."""
        log_p, log_q = self.log_probabilities(filtered)
        return self.of_drafted(log_p) - self.of_drafted(log_q)

    def of_drafted(self, values: Tensor) -> Tensor:
        """[r, k] the entries of ``values`` [r, k or k + 1, vocab] at the drafted tokens."""
        return values[:, : self.tokens.shape[1]].gather(2, self.tokens[..., None]).squeeze(2)

    def is_best(self) -> Tensor:
        """[r, k] whether each drafted token is the target's best."""
        return self.target_logits[:, :-1].argmax(-1) == self.tokens

    def accept(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """The number [r] of leading True of ``kept`` [r, k], and the token [r] after so many, drawn from p."""
        accepted = leading_true(kept, self.lengths)
        return accepted, self.target_token(accepted)

    def target_token(self, accepted: Tensor) -> Tensor:
        """[r] the token after ``accepted`` [r] drafted ones, drawn from p."""
        return self.sampling.draw(gather_at(self.target_logits, accepted), gather_at(self.next_noise, accepted))

    def draw(self, weights: Tensor, accepted: Tensor) -> Tensor:
        """[r] the token after ``accepted`` [r] drafted ones, drawn from ``weights`` [r, vocab]."""
        return sample_from_weights(weights, gather_at(self.next_noise, accepted))


class Acceptance(Protocol):
    """An acceptance rule: how many drafted tokens are accepted [r], and the token after them [r].

    A rule holds settings and no state. Rows are independent, and the host never waits for the device.
    """

    def __call__(self, draft: DraftBlock) -> tuple[Tensor, Tensor]: ...


def log_probabilities(logits: Tensor, sampling: Sampling, filtered: bool) -> Tensor:
    """[..., vocab] log-softmax of ``logits``, or log of the ``filtered`` distribution: -inf outside the filter."""
    return sampling.probabilities(logits).log() if filtered else logits.float().log_softmax(-1)


def leading_true(kept: Tensor, lengths: Tensor) -> Tensor:
    """[r] number of leading True of ``kept`` [r, k], within ``lengths`` [r]."""
    return (kept & length_mask(kept, lengths)).long().cumprod(1).sum(1)


def last_true(kept: Tensor, lengths: Tensor) -> Tensor:
    """[r] length of the longest prefix of ``kept`` [r, k] that ends in True, within ``lengths`` [r]; 0 if none."""
    ends = torch.arange(1, kept.shape[1] + 1, device=kept.device) * (kept & length_mask(kept, lengths))
    return torch.cat([torch.zeros_like(lengths)[:, None], ends], 1).amax(1)


def length_mask(values: Tensor, lengths: Tensor) -> Tensor:
    """[r, k] True at the first ``lengths`` [r] columns of ``values`` [r, k, ...]."""
    return torch.arange(values.shape[1], device=values.device) < lengths[:, None]


def gather_at(values: Tensor, index: Tensor) -> Tensor:
    """values[r, index[r]] for values [r, n, ...] and index [r] or [r, k]."""
    rows = torch.arange(len(index), device=index.device)
    return values[rows if index.dim() == 1 else rows[:, None], index]
