"""The outcome of tuning: a policy, and the decoder that it was tuned for."""

from __future__ import annotations

from dataclasses import dataclass

from decoding.decoders.registry import build_decoder
from policies import Policy
from policies.decoder_spec import DecoderSpec


@dataclass
class Tuned:
    """A policy at its threshold, the decoder that asks it, and how live runs on the tuning prompts compared."""

    policy: Policy
    """``Rule.never()`` where no policy ends a draft"""
    spec: DecoderSpec
    trial: int
    """number of the trial it came from"""
    quantile: float | None
    """share of the scores below the threshold; None without one"""
    faster: float = 1.0
    """speedup over the predicted one"""
    worse: float = 1.0
    """loss over the predicted one"""

    def decoder(self, models):
        """The decoder on ``models``, cheapest first."""
        return build_decoder(models, self.policy.to(models[-1].device), self.spec)
