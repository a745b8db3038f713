"""The one object a decision is taken on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(slots=True)
class Step:
    """What a policy may look at, as raw tensors with one leading shape ``[...]``.

    The leading shape is ``[batch]`` for a hand-off or a draft-length decision, ``[batch, k]`` when ``k``
    drafted tokens are verified at once, and ``[n]`` for rows read back from traces.
    """

    logits: Tensor | None
    """[..., vocab] logits of the model that is about to write, before temperature and filters; None in replay."""
    position: Tensor
    """[...] tokens of the answer already written; 0 at the first."""
    since_large: Tensor
    """[...] tokens written since the larger model last wrote or checked one (before that: since the prompt)."""
    agreed: Tensor
    """[...] 1 where the larger model, when last asked, chose the smaller one's token, else 0; NaN before that."""
    large_entropy: Tensor
    """[...] entropy in nats of the larger model's distribution when it was last asked; NaN before."""
    last_token: Tensor
    """[...] id of the token before this position."""
    uniform: Tensor | None
    """[...] noise in [0, 1), a function of seed, row and position only; None where the policy's ``names`` lack it."""
    repeated: Tensor | None = None
    """[...] length of the longest end of the answer that it holds earlier too, at most 8: a loop that is starting.
    A small model in a loop is sure of itself, so no confidence shows it."""
    hidden: Tensor | None = None
    """[..., width] last hidden state of the model about to write, when the policy sets ``needs_hidden``."""
    target_logits: Tensor | None = None
    """[..., vocab] logits of the larger model at this position; verification only."""
    token: Tensor | None = None
    """[...] id of the drafted token that is judged; verification only."""
    columns: Mapping[str, Tensor] | None = None
    """Features [...] by name that were computed before; rows read back from traces have these and no logits."""
    history: Tensor | None = None
    """[..., window, k] the ``k`` features named by ``policy.history`` at the ``window`` positions before this one,
    oldest first; NaN where there was none."""
    shared: dict[str, Any] | None = None
    """Where features keep what they have in common from one look at the step to the next; None where logits change."""
