"""Whatever the batch, the draft, the budget and the EOS: speculative greedy text is the target's, to the token."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import eager, greedy_text, nudged, tiny

from decoding import Speculative, generate
from policies import Random, Rule

target = tiny(seed=1)
reference = eager(target)
DRAFTS = {"close": nudged(target), "far": nudged(target, 0.3), "itself": target, "stranger": tiny(layers=1, seed=2)}
STOPS = {"none": None, "unsure": Rule("entropy", 2.4), "random": Random(0.3), "always": Rule.always()}


@given(
    prompts=st.lists(st.lists(st.integers(0, 36), min_size=1, max_size=12), min_size=1, max_size=5),
    draft=st.sampled_from(sorted(DRAFTS)),
    stop=st.sampled_from(sorted(STOPS)),
    keep=st.booleans(),
    length=st.integers(1, 9),
    budget=st.integers(1, 14),
    eos=st.sets(st.integers(0, 36), max_size=6),
    padding=st.integers(0, 3),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_speculative_is_greedy(prompts, draft, stop, keep, length, budget, eos, padding):
    width = max(map(len, prompts)) + padding
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    decoder = Speculative([DRAFTS[draft], target], length=length, stop=STOPS[stop], keep_stop_token=keep)
    result = generate(decoder, ids, mask, max_new_tokens=budget, eos_token_id=sorted(eos), seed=0)
    for row, (prompt, new) in enumerate(zip(prompts, result.lengths.tolist(), strict=True)):
        assert result.sequences[row, width : width + new].tolist() == greedy_text(reference, prompt, budget, eos)
