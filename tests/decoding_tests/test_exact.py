"""Whatever the batch, the draft, the budget and the EOS: speculative greedy text is the target's, to the token."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import tiny
from toys import eager, nudged

from decoding import Speculative, generate
from policies import Random, Rule

target = tiny(seed=1)
reference = eager(target)
DRAFTS = {"close": nudged(target), "far": nudged(target, 0.3), "itself": target, "stranger": tiny(layers=1, seed=2)}
STOPS = {"none": None, "unsure": Rule("entropy", 2.4), "random": Random(0.3), "always": Rule.always()}


@torch.no_grad()
def alone(prompt, budget, eos):
    """Token ids that the target writes after a prompt, each from a fresh forward."""
    text = list(prompt)
    while len(text) < len(prompt) + budget and (len(text) == len(prompt) or text[-1] not in eos):
        text.append(int(reference(torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(prompt) :]


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
@settings(max_examples=60, deadline=None, derandomize=True)
def test_speculative_is_greedy(prompts, draft, stop, keep, length, budget, eos, padding):
    width = max(map(len, prompts)) + padding
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    decoder = Speculative([DRAFTS[draft], target], length=length, stop=STOPS[stop], keep=keep)
    result = generate(decoder, ids, mask, max_new_tokens=budget, eos_token_id=sorted(eos), seed=0)
    for row, (prompt, new) in enumerate(zip(prompts, result.lengths.tolist(), strict=True)):
        assert result.sequences[row, width : width + new].tolist() == alone(prompt, budget, eos)
