"""The risk that any token of a draft is rejected."""

from __future__ import annotations

import torch
from torch import Tensor

from policies.features.table import feature_columns
from policies.policy import Policy


class Survival:
    """End a draft where 1 - the product of its tokens' chances to be accepted exceeds ``threshold``.

    SpecDec++ (Huang et al. 2405.19715): a threshold on this risk is optimal if the chances are right. A token's chance
    is 1 - ``risk.score``, clamped to [0, 1]; ``risk`` is a ``Logistic`` or ``MLP`` fitted to rejections, or any policy
    whose score is a probability. Without a ``risk`` the chance is the draft's largest probability. A draft has at least
    ``least`` tokens; the product covers at most ``window`` of them. The paper stops after the token: give the decoder
    ``keep_stop_token=True``. There is no file for it; save ``risk``, the part that is learned.

    Raises ValueError for a threshold outside [0, 1), ``least`` below 1, or a ``risk`` that reads a history of its own.
    """

    history = ("chance",)

    def __init__(self, risk: Policy | None = None, threshold: float = 0.7, least: int = 2, window: int = 20):
        if not 0 <= threshold < 1 or least < 1:
            raise ValueError(f"survival needs a threshold in [0, 1) and least of at least 1, not {threshold}, {least}")
        if risk is not None and risk.history:
            raise ValueError("the risk of a survival policy may read no history: the product is its history")
        self.risk, self.threshold, self.least, self.window = risk, threshold, least, window
        self.names, self.needs_hidden = (("top1",), False) if risk is None else (risk.names, risk.needs_hidden)

    def observe(self, step) -> Tensor:
        """[..., 1] chance that the token at this position is accepted."""
        if self.risk is None:
            return feature_columns(step, self.names)
        return (1 - self.risk.score(step)).clamp(0, 1).unsqueeze(-1)

    def score(self, step) -> Tensor:
        """[...] chance that a token of this draft, or the one about to be drawn, is rejected."""
        earlier = step.history[..., 0]
        back = torch.arange(earlier.shape[-1], 0, -1, device=earlier.device)
        drafted = back <= step.since_large.unsqueeze(-1)
        return 1 - torch.where(drafted, earlier, 1.0).prod(-1) * self.observe(step).squeeze(-1)

    def __call__(self, step) -> Tensor:
        return ~(self.score(step) <= self.threshold) & (step.since_large + 1 >= self.least)
