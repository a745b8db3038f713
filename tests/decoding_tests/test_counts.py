"""Accepted means in the answer: what an end cut off was drafted in vain, in a batch as in single runs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import nudged, successor, tiny, words

from decoding import LM, MTAD, Autoregressive, Backoff, Sampling, Speculative, generate
from decoding.state.token_buffer import left_pad
from policies import Random, Rule

target = LM(tiny(seed=1).model, words())
draft = nudged(target, 0.1)
DECODERS = {
    "speculative": lambda length: Speculative([draft, target], length=length),
    "stopped": lambda length: Speculative([draft, target], length=length, stop=Random(0.3), keep_stop_token=True),
    "mtad": lambda length: MTAD([draft, target], beams=2, length=length, tau=0.3),
    "mmtad": lambda length: MTAD([draft, target], beams=3, length=length, tau=0.3, tree=True),
}


@given(
    prompts=st.lists(st.lists(st.integers(3, 36), min_size=1, max_size=6), min_size=1, max_size=4),
    name=st.sampled_from(sorted(DECODERS)),
    length=st.integers(1, 7),
    budget=st.integers(1, 14),
    eos=st.sets(st.integers(0, 36), max_size=8),
    stops=st.sets(st.integers(3, 36), max_size=4),
    temperature=st.sampled_from([0.0, 1.0]),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_accepted_is_what_is_in_the_answers(prompts, name, length, budget, eos, stops, temperature):
    ids, mask = left_pad(prompts)
    options = {"max_new_tokens": budget, "eos_token_id": sorted(eos), "sampling": Sampling(temperature)}
    options["stop_strings"] = [f"w{i}" for i in sorted(stops)]
    batch = generate(DECODERS[name](length), ids, mask, seed=5, **options)
    assert batch.counts["accepted"] == int((batch.writers == 0).sum()) <= batch.counts["drafted"]
    alone = [
        generate(DECODERS[name](length), torch.tensor([p]), seed=5 + row, **options) for row, p in enumerate(prompts)
    ]
    for count in ("drafted", "accepted"):
        assert batch.counts[count] == sum(one.counts[count] for one in alone)


@pytest.mark.parametrize("options", [{"eos_token_id": 5}, {"eos_token_id": (), "stop_strings": ["w5"]}], ids=str)
@pytest.mark.parametrize("kind", ["speculative", "mtad", "mmtad"])
def test_a_draft_beyond_the_end_by_hand(kind, options):
    """3 4 5 6 is drafted and right, and the answer ends with 5. A beam sees an EOS coming, but no stop string."""
    lm = LM(successor({}).model, words(16))
    decoder = {
        "speculative": Speculative([lm, lm]),
        "mtad": MTAD([lm, lm], beams=1),
        "mmtad": MTAD([lm, lm], beams=1, tree=True),
    }[kind]
    result = generate(decoder, torch.tensor([[2]]), max_new_tokens=12, **options)
    assert result.sequences.tolist() == [[2, 3, 4, 5]]
    assert result.counts["accepted"] == 3
    assert result.counts["drafted"] == (3 if kind != "speculative" and options["eos_token_id"] else 4)


def test_who_drafts_nothing_accepts_nothing():
    for decoder in (Autoregressive(target), Backoff([draft, target], Rule.never())):
        counts = generate(decoder, torch.tensor([[5, 6]]), max_new_tokens=4, eos_token_id=()).counts
        assert counts["drafted"] == counts["accepted"] == 0
