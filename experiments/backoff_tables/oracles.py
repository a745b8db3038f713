"""Oracles: hand-off by someone who asks the next model about every token. Upper bounds of what a policy can know."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from decoding import LM, Backoff
from decoding.state.generation_state import GenerationState
from decoding.state.policy_state import PolicyState
from policies import Rule


class Oracle(Backoff):
    """Backoff whose policies also see what the next model says, as ``target_logits``, and the ``token`` in question.

    The next model reads every token, so this is never fast. Who wrote what is the same as if it had been asked only
    where it writes: a time priced from the writers is that of a policy which would know the answer for nothing.
    """

    def _escalates(
        self,
        run: GenerationState,
        i: int,
        trail: PolicyState,
        rows: Tensor,
        seen: tuple[Tensor, Tensor | None],
        drawn: Tensor,
    ) -> Tensor:
        lengths = run.buffer.lengths[rows]
        step = trail.step(seen[0], rows, lengths, seen[1])
        step.target_logits, _ = run.sessions[i + 1].next(run.buffer.ids, lengths, rows)
        step.token = drawn
        return trail.policy(step)


def kl_oracle(models: Sequence[LM], cut: float, verify_eos: bool = True) -> Oracle:
    """Hand on where KL(small || large) > ``cut`` nats: the ideal that "Backoff Decoding" trains its classifier on."""
    return Oracle(models, [_above("kl", cut) for _ in models[1:]], verify_eos)


def regret_oracle(models: Sequence[LM], cut: float, verify_eos: bool = True) -> Oracle:
    """Hand on where the next model's regret of the token is > ``cut`` nats: at 0, wherever its best is another."""
    return Oracle(models, [_above("target_regret", cut) for _ in models[1:]], verify_eos)


def _above(feature: str, cut: float) -> Rule:
    # A rule escalates at its threshold too, so that is the next number above, in the float32 in which it is kept.
    return Rule(feature, float(np.nextafter(np.float32(cut), np.float32(math.inf))))
