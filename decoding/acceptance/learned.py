"""A learned judge of drafted tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from decoding.acceptance.draft_block import DraftBlock
from decoding.acceptance.lossless import Exact
from decoding.state.policy_state import entropy
from decoding.state.sampling import POLICY
from decoding.step import Policy, PolicyNeeds, Step

JUDGE = POLICY + 1
"""Stream of the noise that a judge sees; the policy that ends a draft has ``POLICY``."""


class Learned:
    """Keep a drafted token that ``policy`` does not find too risky, or that ``Exact`` keeps anyway.

    Judge decoding (Bachmann et al. 2501.19309) with any policy for the judge: one over both models'
    distributions at the drafted token, which the Step then holds as ``target_logits`` and ``token``. After a rejection
    the next token is drawn from max(0, p - q), filtered, so a judge that trusts nothing is ``Exact``.

    Of what the larger model said before the draft nothing is known (NaN). Raises ValueError for a policy that reads
    hidden states, histories or loops: they are not kept for drafted tokens.
    """

    def __init__(self, policy: Policy):
        needs = PolicyNeeds.of(policy)
        if needs.needs_hidden or needs.history or "repeated" in (needs.names or ()):
            raise ValueError("a judge has no hidden states, history or 'repeated' to read; fit a policy without them")
        self.policy = policy

    def __call__(self, draft: DraftBlock) -> tuple[Tensor, Tensor]:
        p, q = draft.probabilities()
        exact = draft.accept_noise * draft.of_drafted(q) < draft.of_drafted(p)
        return Exact().resample_after(draft, p, q, exact | ~self.policy(verification_step(draft)))


def verification_step(draft: DraftBlock) -> Step:
    """The Step [r, k] of every drafted token, as if the target had checked the one before it."""
    place = torch.arange(draft.tokens.shape[1], device=draft.tokens.device).expand_as(draft.tokens)
    said = draft.target_logits[:, :-1]
    return Step(
        logits=draft.draft_logits,
        position=draft.starts[:, None] + place,
        since_large=place,
        agreed=_later((said.argmax(-1) == draft.draft_logits.argmax(-1)).float()),
        large_entropy=_later(entropy(said)),
        last_token=torch.cat([draft.before[:, None], draft.tokens], 1)[:, :-1],
        uniform=draft.policy_noise,
        target_logits=said,
        token=draft.tokens,
    )


def _later(values: Tensor) -> Tensor:
    """[r, k] each one place later, NaN at the first."""
    return torch.cat([torch.full_like(values[:, :1], torch.nan), values[:, :-1]], 1)[:, : values.shape[1]]
