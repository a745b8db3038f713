"""What a decision costs: features, score and threshold, as a share of one token of the model that it watches."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from decoding import LM, Backoff, generate
from policies import Policy
from train.prompts import Prompt


class Timed(Backoff):
    """Backoff that adds up the ``spent`` seconds of its decisions (host clock: meaningful on CPU)."""

    spent = 0.0

    def _hand_on(self, *args) -> Tensor:
        began = time.perf_counter()
        handed = super()._hand_on(*args)
        self.spent += time.perf_counter() - began
        return handed


def decision_share(model: LM, policy: Policy, prompts: Sequence[Prompt], new: int) -> float:
    """Seconds of one decision over those of one token of ``model``, which writes ``new`` to each prompt, one by one.

    Both are timed in turn, token by token, so a machine that slows down slows both.
    """
    quiet = copy.deepcopy(policy)
    quiet.set_threshold(math.inf)  # decides as ever, and never asks the larger model
    spent = tokens = 0.0
    for i, prompt in enumerate(prompts[:1] + prompts):
        decoder = Timed([model, model], quiet, verify_eos=False)
        ids = torch.tensor([prompt.ids], device=model.device)
        result = generate(decoder, ids, max_new_tokens=new, eos_token_id=())
        if i:  # the first is a warm-up
            spent += decoder.spent / new
            tokens += (result.seconds["models"][0] - result.seconds["prefill"]) / (new - 1)
    return spent / tokens
