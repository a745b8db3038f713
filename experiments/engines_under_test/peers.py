"""Other engines on the same models: transformers' generate in three modes, and llama.cpp."""

import copy
from collections.abc import Callable, Sequence

import torch

from decoding import LM
from decoding.kernels.packed_products import PackedLinear
from decoding.state.token_buffer import left_pad
from train.data.prompts import Prompt


def twin(lm: LM):
    """A model that shares the weights of ``lm`` and runs as transformers would: sdpa attention, plain linear layers."""
    for module in lm.model.modules():
        getattr(module, "weight", None)  # which packed layers then hold
    shared = {id(weight): weight for weight in lm.model.parameters()}
    model = copy.deepcopy(lm.model, shared)
    for module in model.modules():
        if type(module) is PackedLinear:
            module.__class__ = torch.nn.Linear
    model.set_attn_implementation("sdpa")
    return model


class Transformers:
    """Greedy ``generate`` of ``model``; with ``options`` such as ``prompt_lookup_num_tokens``.

    With a ``draft`` of ``length`` tokens it is assisted generation at a fixed length. transformers reads these settings
    from the draft's generation_config only and ignores them as arguments of generate; where scikit-learn is installed,
    it would fit a confidence threshold other than 0 anew in every round.
    """

    def __init__(self, model, draft=None, length: int | None = None, **options):
        self.model, self.draft, self.length = model, draft, length
        self.options = options | ({} if draft is None else {"assistant_model": draft})
        eos = model.generation_config.eos_token_id
        self.eos = {eos} if isinstance(eos, int) else set(() if eos is None else eos)

    def __call__(self, prompts: Sequence[Prompt], new: int, seed: int) -> list[tuple[list[int], list[int]]]:
        """(token ids with EOS, no writers) of each answer."""
        if self.draft is not None:
            settings = self.draft.generation_config
            settings.num_assistant_tokens, settings.num_assistant_tokens_schedule = self.length, "constant"
            settings.assistant_confidence_threshold = 0.0
        ids, mask = left_pad([prompt.ids for prompt in prompts], self.model.get_input_embeddings().weight.device)
        with torch.inference_mode():
            out = self.model.generate(
                ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0, **self.options
            )
        return [(self._cut(row), []) for row in out[:, ids.shape[1] :].tolist()]

    def _cut(self, answer: list[int]) -> list[int]:
        ends = [i + 1 for i, token in enumerate(answer) if token in self.eos]
        return answer[: ends[0]] if ends else answer


def one_by_one(engine) -> Callable:
    """An engine in a process of its own, such as llama.cpp, called as the others are, one prompt at a time."""
    return lambda prompts, new, seed: [(engine.answer(p.ids, new)[0], []) for p in prompts]
