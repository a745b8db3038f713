"""Backoff decoding: a policy allocates each token to one of N models ("Backoff Decoding", section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from decoding.lm import LM
from decoding.run import Run
from decoding.sampling import DRAW
from decoding.text import Commit
from decoding.trail import Policy, Trail


class Backoff:
    """Models cheapest first and one policy per model but the last; a policy that says True hands the token on.

    A model that is passed over lags behind and catches up, in one forward, when it is next asked. All models draw
    from the same noise, so always handing on equals the last model alone, with sampling too. With ``verify_eos`` an
    EOS by any model but the last is handed on: a small model never ends an answer unchecked.

    Raises ValueError unless there are at least two models and exactly one policy fewer.
    """

    scratch: ClassVar[int] = 0

    def __init__(self, models: Sequence[LM], policies: Policy | Sequence[Policy], verify_eos: bool = True):
        self.models = list(models)
        self.policies = [policies] if callable(policies) else list(policies)
        self.verify_eos = verify_eos
        if len(self.models) < 2 or len(self.policies) != len(self.models) - 1:
            raise ValueError(
                f"backoff needs at least 2 models and one policy per model but the last, "
                f"not {len(self.models)} models and {len(self.policies)} policies"
            )

    def write(self, run: Run) -> Iterator[Commit]:
        text = run.text
        trails = [Trail(policy, text, i) for i, policy in enumerate(self.policies)]
        run.escalated = [0] * len(self.policies)
        while True:
            rows = text.rows
            tokens = torch.empty_like(rows)
            writers = torch.zeros_like(rows)
            self._ask(run, trails, 0, torch.arange(len(rows), device=rows.device), tokens, writers)
            yield Commit.one(rows, tokens, writers)

    def _ask(self, run: Run, trails: list[Trail], i: int, which: Tensor, tokens: Tensor, writers: Tensor) -> Tensor:
        """Let model i write ``tokens[which]``, unless its policy hands them on; returns the logits of model i."""
        text, rows = run.text, run.text.rows[which]
        lengths = text.lengths[rows]
        trail = trails[i] if i < len(trails) else None
        seen = run.sessions[i].next(text.ids, lengths, rows, trail is not None and trail.needs_hidden)
        logits = seen[0]
        drawn = run.sampling.draw(logits, text.uniform(rows, lengths - text.prompts[rows], DRAW))
        tokens[which], writers[which] = drawn, i
        if trail is not None:
            handed = self._hand_on(run, i, trail, rows, seen, drawn)
            if self.verify_eos:
                handed = handed | text.ends(drawn)
            if bool(handed.any()):
                run.escalated[i] += int(handed.sum())
                large = self._ask(run, trails, i + 1, which[handed], tokens, writers)
                agreed = large.argmax(-1) == logits[handed].argmax(-1)
                trail.checked_by_large(rows[handed], lengths[handed] + 1, agreed, large)
        return logits

    def _hand_on(
        self, run: Run, i: int, trail: Trail, rows: Tensor, seen: tuple[Tensor, Tensor | None], drawn: Tensor
    ) -> Tensor:
        """bool [r]: whether policy i, shown the logits and hidden states ``seen``, hands the tokens ``drawn`` on."""
        logits, hidden = seen
        return trail.policy(trail.step(logits, rows, run.text.lengths[rows], hidden))
