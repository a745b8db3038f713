"""Cost of a policy's decisions, as a share of the tokens of the model that it watches."""

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from decoding import LM, Backoff, generate
from policies import Policy
from train.data.prompts import Prompt


class TimedBackoff(Backoff):
    """Backoff that adds up the ``spent`` seconds of its decisions, by the host's clock: meaningful on CPU only."""

    spent, uncompiled = 0.0, False

    def _escalates(self, state, i, policy_state, *args) -> Tensor:
        policy_state.compiled = None if self.uncompiled else policy_state.compiled
        began = time.perf_counter()
        escalated = super()._escalates(state, i, policy_state, *args)
        self.spent += time.perf_counter() - began
        return escalated


def decision_share(model: LM, policy: Policy, prompts: Sequence[Prompt], new: int, uncompiled: bool = False) -> float:
    """Seconds of one decision over those of one token of ``model``, which answers each prompt with ``new`` tokens.

    Both are timed in turn, token by token, so a machine that slows down slows both. ``uncompiled``: decide by a Step
    and tensor operations, as on devices without the compiled call.
    """
    quiet = policy.with_threshold(math.inf)  # it decides as before, and never escalates
    spent = tokens = 0.0
    for i, prompt in enumerate(prompts[:1] + prompts):
        decoder = TimedBackoff([model, model], quiet, verify_eos=False)
        decoder.uncompiled = uncompiled
        ids = torch.tensor([prompt.ids], device=model.device)
        result = generate(decoder, ids, max_new_tokens=new, eos_token_id=())
        if i:  # the first is a warm-up
            spent += decoder.spent / new
            tokens += (result.seconds["models"][0] - result.seconds["prefill"]) / (new - 1)
    return spent / tokens
