"""Speculative decoding: the draft proposes a block, the target checks it in one forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from decoding.acceptance import Acceptance, Exact, Strict
from decoding.draft import Draft, at
from decoding.drafting import Proposer, draft, noise, propose
from decoding.judge import JUDGE
from decoding.lm import LM
from decoding.run import Run
from decoding.sampling import ACCEPT, REPLACE
from decoding.text import Commit
from decoding.trail import Policy, Trail


class Speculative:
    """Draft up to ``length`` tokens, fewer where ``stop`` says so, and keep what ``accept`` keeps.

    The draft is a model or anything with ``propose``, such as ``PromptLookup(3)``; only the target is then in
    ``models``, yet writer 0 is the draft and 1 the target. ``stop`` is a policy asked before each drafted token with
    the draft's distribution: True ends the draft there and drops that token; ``keep=True`` drafts it and then ends, as
    transformers and OpenVINO do. With ``Exact`` or ``Block`` the output is the target's own (Leviathan et al.
    2211.17192, section 2). With ``strict_prefix=n`` a lossy rule is not asked about drafts that begin within the
    first n tokens of an answer: these are verified by ``Exact``.

    Raises ValueError unless there are a draft and a target, ``length`` is at least 1, ``strict_prefix`` at least 0,
    and a ``stop`` has a model to look at.
    """

    def __init__(
        self,
        models: Sequence[LM | Proposer],
        length: int = 4,
        stop: Policy | None = None,
        accept: Acceptance | None = None,
        keep: bool = False,
        strict_prefix: int = 0,
    ):
        if len(models) != 2:
            raise ValueError(f"speculative decoding takes [draft, target], not {len(models)} models")
        if length < 1:
            raise ValueError(f"the draft length must be at least 1, not {length}")
        self.proposer = models[0] if hasattr(models[0], "propose") else None
        if stop is not None and self.proposer is not None:
            raise ValueError("a stop policy looks at the draft's distribution; what only proposes tokens has none")
        self.models = list(models) if self.proposer is None else [models[1]]
        self.length, self.stop, self.keep, self.strict_prefix = length, stop, keep, strict_prefix
        self.accept = Exact() if accept is None else accept
        self.strict = Strict(self.accept, strict_prefix)
        self.scratch = length + 1

    def write(self, run: Run) -> Iterator[Commit]:
        text, large = run.text, run.sessions[-1]
        trail = Trail(self.stop, text) if self.stop is not None else None
        rounds = 0
        while True:
            rows = text.rows
            lengths = text.lengths[rows]
            tokens, logits, drafted = self._draft(run, trail, rows, lengths)
            k = tokens.shape[1]
            checked = large.catch_up(text.ids, lengths + drafted, rows, keep=k + 1)
            # Rows are right-aligned: bring the logits of the first drafted token of each to the front.
            shift = (k - drafted)[:, None] + torch.arange(k + 1, device=rows.device)
            checked = checked[torch.arange(len(rows), device=rows.device)[:, None], shift.clamp(max=k)]
            # A row has gained a token in every round, so the host knows when all are past the strict prefix.
            accept = self.strict if rounds < self.strict_prefix else self.accept
            accepted, after = accept(self._block(run, rows, lengths, tokens, drafted, logits, checked))
            for session in run.sessions:
                session.rollback(rows, lengths + accepted)
            run.drafted += int(drafted.sum())
            rounds += 1
            if trail is not None:
                trail.checked_by_large(rows, lengths + accepted + 1, accepted == drafted, at(checked, accepted))
            yield Commit.checked(rows, tokens, accepted, after)

    def _draft(self, run: Run, trail: Trail | None, rows: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The target writes one token in any case: the budget leaves room for one drafted token fewer.
        room = (run.text.prompts[rows] + run.text.budget - lengths - 1).clamp(max=self.length)
        if self.proposer is not None:
            return propose(run, self.proposer, rows, lengths, room, self.length)
        return draft(run, trail, rows, lengths, room, self.length, self.keep)

    def _block(self, run: Run, rows, lengths, tokens, drafted, draft_logits, target_logits) -> Draft:
        text, place = run.text, torch.arange(tokens.shape[1] + 1, device=rows.device)
        starts = lengths - text.prompts[rows]
        fresh = lambda place, stream: noise(text, rows, starts[:, None], place, stream, self.length)  # noqa: E731
        return Draft(
            tokens=tokens,
            lengths=drafted,
            draft_logits=draft_logits,
            target_logits=target_logits,
            sampling=run.sampling,
            accept_noise=fresh(place[:-1], ACCEPT),
            next_noise=fresh(place, REPLACE),
            policy_noise=fresh(place[:-1], JUDGE),
            starts=starts,
            before=text.ids[rows, lengths - 1],
        )
