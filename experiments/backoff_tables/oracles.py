"""Oracles: hand-off by policies that see the next model's answer for every token, an upper bound for any policy."""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from decoding import LM, Backoff
from decoding.state.generation_state import GenerationState
from decoding.state.policy_state import PolicyState
from policies import Rule


class Oracle(Backoff):
    """Backoff whose policies also see the next model's ``target_logits`` and the drawn ``token``.

    The next model reads every token, so this is slow. The writers are the same as if it had been called only where it
    writes, so a time priced from the writers is that of a policy that knows the answer at no cost.
    """

    shows_target = True

    def _escalates(self, state: GenerationState, i: int, policy_state: PolicyState, rows, seen, drawn) -> Tensor:
        lengths = state.buffer.lengths[rows]
        step = policy_state.step(seen[0], rows, lengths, seen[1])
        target_logits, _ = state.sessions[i + 1].next(state.buffer.ids, lengths, rows)
        step.target_logits = state.processed(target_logits, rows, lengths)
        step.token = drawn
        return policy_state.policy(step)


def oracle(models: Sequence[LM], feature: str, cut: float, verify_eos: bool = True) -> Oracle:
    """Escalate where ``feature`` is above ``cut`` nats.

    "kl", KL(small || large), is the label of the Backoff Decoding paper's classifier; "target_regret" is the next
    model's regret of the token, above 0 wherever its best token differs.
    """
    # A rule escalates at its threshold too, so the threshold is the next float32 above the cut.
    above = float(np.nextafter(np.float32(cut), np.float32(math.inf)))
    return Oracle(models, [Rule(feature, above) for _ in models[1:]], verify_eos)
