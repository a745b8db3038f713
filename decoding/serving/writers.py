"""The decoders that a server writes with, by what a request asks of the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from decoding.decoders.autoregressive import Autoregressive
from decoding.generation import Decoder
from decoding.models.settings import refuse_settings
from decoding.serving.bodies import Body
from decoding.serving.jobs import Mode
from decoding.state.sampling import Sampling


class Writers:
    """``tuned`` is the decoder as tuned, and ``policy`` the one in it, None where it has none.

    logged: the same decoder with a policy that records what it sees; it writes what is served just as it was tuned.
    curve: of the policy's thresholds, what replay predicts of each: ``threshold`` and ``speedup``, least loss first.
    """

    def __init__(
        self,
        tuned: Decoder,
        policy: Any,
        default: Sampling,
        curve: Sequence[Mapping[str, float]] = (),
        logged: Decoder | None = None,
    ):
        self.tuned, self.policy, self.default, self.curve, self.logged = tuned, policy, default, curve, logged
        self.large = Autoregressive(tuned.models[-1])
        self.threshold = float(policy.threshold) if policy is not None and policy.names else None
        """None also where the policy looks at nothing, and says the same of every token"""

    def mode(self, body: Body) -> Mode:
        """What ``body`` asks for. ValueError, one sentence, for what this policy cannot do."""
        sampling = body.sampling(self.default)
        refuse_settings(self.large.models[-1], sampling.greedy)
        if body.policy is None:
            return Mode(sampling)
        if body.policy == "off":
            return Mode(sampling, alone=True)
        if self.threshold is None:
            raise ValueError("this server has no policy with a threshold, so a request can only turn it off")
        if body.policy.threshold is not None:
            return Mode(sampling, threshold=body.policy.threshold)
        return Mode(sampling, threshold=self._threshold_for(body.policy.target_speedup))

    def __call__(self, mode: Mode) -> Decoder:
        """The decoder of ``mode``. The policy is one object: its threshold is that of the batch that is written."""
        if mode.alone:
            return self.large
        if self.threshold is not None:
            self.policy.threshold.fill_(self.threshold if mode.threshold is None else mode.threshold)
        return self.logged if self.logged is not None and self.is_logged(mode) else self.tuned

    def is_logged(self, mode: Mode) -> bool:
        """Whether texts of ``mode`` are such as the policy was measured on."""
        return mode == Mode(self.default)

    def _threshold_for(self, speedup: float) -> float:
        if not self.curve:
            raise ValueError("policy.json says nothing of other speeds; ask for a threshold, or tune the policy anew")
        for point in self.curve:
            if point["speedup"] >= speedup:
                return point["threshold"]
        most = max(point["speedup"] for point in self.curve)
        raise ValueError(f"target_speedup is {speedup:g}, but by replay this policy reaches at most {most:.2f}")
