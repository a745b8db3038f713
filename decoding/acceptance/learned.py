"""A policy as the acceptance rule."""

from __future__ import annotations

import torch
from torch import Tensor

from decoding.acceptance.draft_block import DraftBlock
from decoding.acceptance.lossless import Exact
from decoding.state.policy_state import entropy
from decoding.state.sampling import POLICY
from decoding.step import Policy, PolicyNeeds, Step

VERIFY = POLICY + 1  # stream of noise of the policy that verifies drafted tokens; that of a stop policy is ``POLICY``


class Learned:
    """Keep a drafted token unless ``policy`` finds it too risky; always keep one that ``Exact`` keeps.

    Judge decoding (Bachmann et al. 2501.19309) with any policy as the judge. Its Step holds the drafted token as
    ``token`` and the target's distribution as ``target_logits``. After a rejection the next token is drawn from
    max(0, p - q), filtered, so a policy that always says True makes this ``Exact``.

    ``agreed`` and ``large_entropy`` are NaN at the first drafted token. Raises ValueError for a policy that reads
    hidden states, a history or "repeated": they are not known for drafted tokens.
    """

    def __init__(self, policy: Policy):
        needs = PolicyNeeds.of(policy)
        if needs.needs_hidden or needs.history or "repeated" in (needs.names or ()):
            raise ValueError("drafted tokens have no hidden states, history or 'repeated'; fit a policy without")
        self.policy = policy

    def __call__(self, draft: DraftBlock) -> tuple[Tensor, Tensor]:
        p, q = draft.probabilities()
        exact = draft.accept_noise * draft.of_drafted(q) < draft.of_drafted(p)
        return Exact().resample_after(draft, p, q, exact | ~self.policy(verification_step(draft)))


def verification_step(draft: DraftBlock) -> Step:
    """The Step [r, k] of all drafted tokens, each as if the target had just checked the token before it."""
    place = torch.arange(draft.tokens.shape[1], device=draft.tokens.device).expand_as(draft.tokens)
    target = draft.target_logits[:, :-1]
    return Step(
        logits=draft.draft_logits,
        position=draft.starts[:, None] + place,
        since_large=place,
        agreed=_later((target.argmax(-1) == draft.draft_logits.argmax(-1)).float()),
        large_entropy=_later(entropy(target)),
        last_token=torch.cat([draft.before[:, None], draft.tokens], 1)[:, :-1],
        uniform=draft.policy_noise,
        target_logits=target,
        token=draft.tokens,
    )


def _later(values: Tensor) -> Tensor:
    """``values`` [r, k] shifted right by one, with NaN first."""
    return torch.cat([torch.full_like(values[:, :1], torch.nan), values[:, :-1]], 1)[:, : values.shape[1]]
