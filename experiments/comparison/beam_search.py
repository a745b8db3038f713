"""transformers' own beam search of the large model: the control for methods that search for likely text."""

from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

import torch

from decoding import LM
from decoding.state.generation_state import GenerationState
from decoding.state.token_buffer import Commit, left_pad
from experiments.engines_under_test.peers import twin


class BeamSearch:
    """The likeliest of ``width`` beams, by ``transformers.generate`` on the same weights, at its own speed.

    Raises ValueError for a width under 2, which would be greedy decoding, and for a model that is not in transformers.
    """

    scratch: ClassVar[int] = 0

    def __init__(self, large: LM, width: int = 4):
        if width < 2:
            raise ValueError(f"beam search has a width of at least 2, not {width}")
        if not hasattr(large.model, "generate"):
            raise ValueError(f"beam search is that of transformers, which does not run {large.name}; leave it out")
        self.models, self.width = [large], width

    @cached_property
    def model(self):
        """The same weights with transformers' cache and attention."""
        return twin(self.models[0])

    def write(self, run: GenerationState) -> Iterator[Commit]:
        text, rows = run.buffer, run.buffer.rows
        prompts = [text.ids[row, :length].tolist() for row, length in enumerate(text.prompts)]
        ids, mask = left_pad(prompts, rows.device)
        out = self.model.generate(
            ids,
            attention_mask=mask,
            num_beams=self.width,
            do_sample=False,
            max_new_tokens=text.budget,
            eos_token_id=text.eos.tolist() or None,
            pad_token_id=int(text.eos[0]) if len(text.eos) else 0,
        )
        answers = out[:, ids.shape[1] :]
        # What stands behind an EOS is padding; the text is cut there.
        yield Commit(rows, answers, torch.zeros_like(answers), torch.full_like(rows, answers.shape[1]))
