"""What a text of the large model itself is worth at a temperature, to which the loss of other texts is held.

A text that is drawn is not the likeliest one, so the large model's own has a regret too. A loss at a temperature is the
guarded regret of a text minus the mean one of the large model's texts under the same sampling: about 0 for the large
model, and for every method that is exact in distribution, and below 0 for what draws likelier tokens than it does.

Loops and stops are judged beside a text of the large model. Its own words in that text are no loop, so none of its
texts is judged beside itself, but each beside the others, just as the texts of a method are: only then is the
difference of two that draw from one distribution 0 on average. That takes two texts at least.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from decoding import Sampling
from decoding.models.lm import LM
from train.common.generations import answers
from train.data.records import Prompt

OWN, ROOM = 2**40, 2**10
"""from this seed on the large model draws its texts here: no method draws any of its own with one of these"""


@dataclass
class SampledBaseline:
    """The large model's texts to a prompt, ``seeds`` of them, drawn apart from all that are judged."""

    large: LM
    sampling: Sampling
    seeds: int
    budget: int  # most tokens of a text
    kept: dict[str, list[list[int]]] = field(default_factory=dict)  # by prompt

    def __post_init__(self) -> None:
        if self.seeds < 2:
            raise ValueError(f"a loss at a temperature takes 2 texts of the large model, not {self.seeds}")

    def texts(self, prompt: Prompt) -> list[list[int]]:
        """The texts, the same whenever and beside whatever else they are drawn."""
        if prompt.id not in self.kept:
            seed = OWN + ROOM * zlib.crc32(prompt.id.encode())
            self.kept[prompt.id] = answers(self.large, [prompt] * self.seeds, self.budget, self.sampling, seed)
        return self.kept[prompt.id]

    def own_loss(self, prompt: Prompt, judge: Callable[[list[int], list[list[int]]], float]) -> float:
        """The mean loss of its texts, each by ``judge(text, the others)``."""
        texts = self.texts(prompt)
        return float(np.mean([judge(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts)]))
