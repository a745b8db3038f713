"""MTAD and MMTAD, step by step, against lists and dicts; batches, ends and counts."""

import random

import pytest
import torch
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from mtad_reference import Reference
from toys import eager, ending_tokens, greedy, nudged

from decoding import MTAD, Autoregressive, Joint, PromptLookup, Sampling, Speculative, generate
from decoding.generation import commits, start
from decoding.session import Session

SMALL = {"layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8}


def pair(kind, vocab, seed, scale, **changes):
    target = tiny(kind, seed=seed, vocab_size=vocab, **SMALL | changes)
    return nudged(target, scale), target


PAIRS = {
    "llama": pair("llama", 6, 1, 0.5),
    "qwen3": pair("qwen3", 11, 2, 0.3),
    "gpt2": pair("gpt2", 7, 3, 0.6, n_inner=16),
    "mistral-window": pair("mistral-window", 37, 4, 0.2, sliding_window=4),
    "gemma2": pair("gemma2", 9, 5, 0.4, sliding_window=3, **GEMMA),
}
REFERENCES = {name: [eager(lm) for lm in models] for name, models in PAIRS.items()}


def random_case(choose, vocab):
    """(decoder options, prompts, other options) of a random generation."""
    sampling = choose.choice(
        [Sampling(), Sampling(1.0), Sampling(0.7), Sampling(1.3, top_k=4), Sampling(1.0, top_p=0.8)]
    )
    options = {
        "beams": choose.randint(1, 4),
        "length": choose.randint(1, 5),
        "tau": choose.choice([0.0, 0.1, 0.5, 1.0]),
        "filtered": choose.random() < 0.4,
    }
    prompts = [[choose.randrange(vocab) for _ in range(choose.randint(1, 6))] for _ in range(choose.randint(1, 3))]
    ends = choose.sample(range(vocab), choose.randint(0, 2))
    return options, prompts, (choose.randint(1, 11), ends, sampling, choose.randrange(1000))


def padded(prompts):
    width = max(map(len, prompts))
    rows = [[0] * (width - len(p)) + p for p in prompts]
    return torch.tensor(rows), torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])


def rounds_of(decoder, prompts, budget, ends, sampling, seed):
    """For each row the tokens of every round."""
    run = start(decoder, *padded(prompts), budget, ends, sampling, seed)
    rounds, before = [[] for _ in prompts], [0] * len(prompts)
    with torch.inference_mode():
        for _ in commits(decoder, run):
            for row in range(len(prompts)):
                answer = run.text.answer(row)
                if len(answer) > before[row]:
                    rounds[row].append(answer[before[row] :])
                    before[row] = len(answer)
    return rounds


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
@pytest.mark.parametrize("name", PAIRS)
def test_rounds_are_those_of_the_reference(name, tree):
    choose = random.Random(f"{name} {tree}")
    finished = cases = 0
    while cases < 50:
        options, prompts, rest = random_case(choose, PAIRS[name][1].vocab)
        budget, ends, sampling, seed = rest
        found = rounds_of(MTAD(PAIRS[name], tree=tree, **options), prompts, *rest)
        reference = Reference(*REFERENCES[name], tree=tree, sampling=sampling, ends=ends, **options)
        for row, prompt in enumerate(prompts):
            expected, whole = reference.write(prompt, budget, seed + row)
            assert found[row][: len(expected)] == expected, (options, prompt, rest, row)
            assert not whole or len(found[row]) == len(expected)
            finished += whole
            cases += 1
    assert finished > 0.9 * cases
