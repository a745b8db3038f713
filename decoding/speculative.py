"""Speculative decoding: the draft proposes a block, the target checks it in one forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from decoding.acceptance import Acceptance, Draft, Exact
from decoding.lm import LM
from decoding.run import Run
from decoding.sampling import ACCEPT, DRAW, REPLACE
from decoding.text import Commit
from decoding.trail import Policy, Trail


class Speculative:
    """Draft up to ``length`` tokens, fewer where ``stop`` says so, and keep what ``accept`` keeps.

    ``stop`` is a policy asked before each drafted token with the draft's distribution: True ends the draft there and
    drops that token; ``keep=True`` drafts it and then ends, as transformers and OpenVINO do. With ``Exact`` the output
    is the target's own (Leviathan et al. 2211.17192, section 2).

    Raises ValueError unless there are two models and ``length`` is at least 1.
    """

    def __init__(
        self,
        models: Sequence[LM],
        length: int = 4,
        stop: Policy | None = None,
        accept: Acceptance | None = None,
        keep: bool = False,
    ):
        if len(models) != 2:
            raise ValueError(f"speculative decoding takes [draft, target], not {len(models)} models")
        if length < 1:
            raise ValueError(f"the draft length must be at least 1, not {length}")
        self.models, self.length, self.stop, self.keep = list(models), length, stop, keep
        self.accept = Exact() if accept is None else accept
        self.scratch = length + 1

    def write(self, run: Run) -> Iterator[Commit]:
        text, (small, large) = run.text, run.sessions
        trail = Trail(self.stop, text) if self.stop is not None else None
        run.drafted = run.accepted = 0
        while True:
            rows = text.rows
            lengths = text.lengths[rows]
            tokens, logits, drafted = self._draft(run, trail, rows, lengths)
            k = tokens.shape[1]
            checked = large.catch_up(text.ids, lengths + drafted, rows, keep=k + 1)
            # Rows are right-aligned: bring the logits of the first drafted token of each to the front.
            shift = (k - drafted)[:, None] + torch.arange(k + 1, device=rows.device)
            checked = checked[torch.arange(len(rows), device=rows.device)[:, None], shift.clamp(max=k)]
            accepted, after = self.accept(self._block(run, rows, lengths, tokens, drafted, logits, checked))
            small.rollback(rows, lengths + accepted)
            large.rollback(rows, lengths + accepted)
            run.drafted += int(drafted.sum())
            run.accepted += int(accepted.sum())
            if trail is not None:
                last = checked[torch.arange(len(rows), device=rows.device), accepted]
                trail.checked_by_large(rows, lengths + accepted + 1, accepted == drafted, last)
            yield self._commit(rows, tokens, accepted, after)

    def _draft(self, run: Run, trail: Trail | None, rows: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Write a draft into the text's scratch: tokens [r, k], logits [r, k, vocab], lengths [r]."""
        text, session = run.text, run.sessions[0]
        drafted = torch.zeros_like(rows)
        # The target writes one token in any case: the budget leaves room for one drafted token fewer.
        room = (text.prompts[rows] + text.budget - lengths - 1).clamp(max=self.length)
        going = drafted < room
        tokens, logits = [], []
        while bool(going.any()):
            which = going.nonzero().squeeze(1)
            at = rows[which]
            now = lengths[which] + drafted[which]
            row_logits, hidden = session.next(text.ids, now, at, trail is not None and trail.needs_hidden)
            stopped = self._stopped(trail, row_logits, at, now, hidden)
            ahead = which if self.keep else which[~stopped]
            drawn = run.sampling.draw(row_logits, text.uniform(at, now - text.prompts[at], DRAW))
            text.ids[at, now] = drawn
            drafted[ahead] += 1
            tokens.append(_spread(drawn, which, len(rows)))
            logits.append(_spread(row_logits, which, len(rows)))
            going = torch.zeros_like(going).index_fill(0, which[~stopped], True) & (drafted < room)
        k = int(drafted.max())
        if k == 0:
            return (
                lengths.new_zeros(len(rows), 0),
                torch.empty(len(rows), 0, session.vocab, device=rows.device),
                drafted,
            )
        return torch.stack(tokens[:k], 1), torch.stack(logits[:k], 1), drafted

    def _stopped(self, trail: Trail | None, logits: Tensor, rows: Tensor, lengths: Tensor, hidden) -> Tensor:
        if trail is None:
            return torch.zeros_like(rows, dtype=torch.bool)
        return trail.policy(trail.step(logits, rows, lengths, hidden))

    def _block(self, run: Run, rows, lengths, tokens, drafted, draft_logits, target_logits) -> Draft:
        position = (lengths - run.text.prompts[rows])[:, None] + torch.arange(tokens.shape[1] + 1, device=rows.device)
        return Draft(
            tokens=tokens,
            lengths=drafted,
            draft_logits=draft_logits,
            target_logits=target_logits,
            sampling=run.sampling,
            accept_noise=run.text.uniform(rows, position[:, :-1], ACCEPT),
            next_noise=run.text.uniform(rows, position, REPLACE),
        )

    def _commit(self, rows: Tensor, tokens: Tensor, accepted: Tensor, after: Tensor) -> Commit:
        tokens = torch.cat([tokens, after[:, None]], 1).scatter(1, accepted[:, None], after[:, None])
        writers = torch.zeros_like(tokens).scatter(1, accepted[:, None], 1)
        return Commit(rows, tokens, writers, accepted + 1)


def _spread(values: Tensor, which: Tensor, rows: int) -> Tensor:
    """[rows, ...] with ``values`` at ``which`` and zeros elsewhere."""
    if len(which) == rows:
        return values
    return values.new_zeros(rows, *values.shape[1:]).index_copy(0, which, values)
