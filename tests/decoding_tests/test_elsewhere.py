"""Whatever belongs on the device of the models is made there: every decoder, on one that refuses tensors of the CPU."""

import copy

import numpy as np
import pytest
import torch
from simulated_device import DEVICE, Elsewhere, move
from tiny_models import mostly_slow, nudged, tiny, words
from torch.utils._python_dispatch import _disable_current_modes

from decoding import (
    LM,
    MTAD,
    Autoregressive,
    Backoff,
    PromptLookup,
    Sampling,
    SpecInfer,
    Speculative,
    generate,
    generate_many,
)
from decoding.acceptance.rules import RULES, rule
from decoding.generation import start
from decoding.models import lm as lm_module
from policies import MLP, Logistic, Random, Rule

NAMES = ("entropy", "top10", "margin", "agreed", "mean_entropy", "repeated", "since_large", "position", "large_entropy")
OPTIONS = {"max_new_tokens": 8, "eos_token_id": 5, "pad_token_id": 0, "seed": 0}
large = tiny(layers=1, seed=1)
small = nudged(large)


def fitted(kind):
    table = np.random.default_rng(0).normal(2.4, 1, (400, len(NAMES)))
    return kind(NAMES).fit(table, table[:, 0] > 2.4)


POLICIES = {"logistic": fitted(Logistic), "mlp": fitted(MLP), "rule": Rule("entropy", 2.4), "random": Random(0.4)}
DECODERS = {
    "autoregressive": lambda a, b, policy: Autoregressive(b),
    "lookup": lambda a, b, policy: Speculative([PromptLookup(3), b], 4),
    "mtad": lambda a, b, policy: MTAD([a, b], beams=3, length=3),
    "mmtad": lambda a, b, policy: MTAD([a, b], beams=3, length=3, tree=True),
    "specinfer": lambda a, b, policy: SpecInfer([a, b], branches=(3, 2)),
    "stop, kept": lambda a, b, policy: Speculative([a, b], 4, stop=policy, keep_stop_token=True),
    **{
        name: lambda a, b, policy, name=name: Speculative([a, b], 4, accept=rule(name))
        for name in sorted(RULES.keys() - {"Learned"})
    },
}
DECIDERS = {
    "stop": lambda a, b, policy: Speculative([a, b], 4, stop=policy),
    "backoff": lambda a, b, policy: Backoff([a, b], policy),
    "three": lambda a, b, policy: Backoff([a, b, b], [policy, policy]),
}


FEW = ("autoregressive", "mmtad", "specinfer", "Exact")


@pytest.fixture
def away(monkeypatch):
    """The pair on that device. Its tensors cannot be those of inference mode."""
    monkeypatch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad())
    with Elsewhere():
        yield [LM(move(copy.deepcopy(lm.model))) for lm in (small, large)]


def check(make, away, prompts, sampling, policy=None):
    there = None if policy is None else move(copy.deepcopy(policy))
    found = generate(make(*away, there), *(part.to(DEVICE) for part in prompts), sampling=sampling, **OPTIONS)
    with _disable_current_modes():
        expected = generate(make(small, large, policy), *prompts, sampling=sampling, **OPTIONS)
    assert found.sequences.device == found.writers.device == DEVICE
    assert found.sequences.tolist() == expected.sequences.tolist()
    assert found.writers.tolist() == expected.writers.tolist()
    assert found.counts["accepted"] == expected.counts["accepted"]


@pytest.mark.parametrize(
    "decoder", mostly_slow(DECODERS, ["autoregressive", "speculative", "mmtad", "specinfer", "Block"])
)
def test_decoders(decoder, away, prompts):
    check(DECODERS[decoder], away, prompts, Sampling(1.0, top_k=20, top_p=0.9), POLICIES["rule"])


@pytest.mark.parametrize("decoder", ["autoregressive", "mmtad", "specinfer", "Exact", "Joint"])
def test_greedy_decoders(decoder, away, prompts):
    check(DECODERS[decoder], away, prompts, Sampling(), POLICIES["rule"])


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("decoder", "policy"),
    [("stop", "logistic"), ("stop", "random"), ("backoff", "mlp"), ("backoff", "rule"), ("three", "logistic")],
)
def test_decisions(decoder, policy, away, prompts):
    check(DECIDERS[decoder], away, prompts, Sampling(), POLICIES[policy])


@pytest.mark.parametrize("decoder", ["autoregressive", "specinfer", "stop", "backoff"])
def test_rows_are_replaced_there(decoder, away):
    """A draft that does not wait for its stop, and what a policy keeps of a row, begin anew."""
    make, policy, texts = (
        (DECODERS | DECIDERS)[decoder],
        POLICIES["logistic"],
        [[5, 9, 11], [7], [8, 3, 20, 6], [30, 31]],
    )
    options = {"batch_size": 2, "max_new_tokens": 8, "eos_token_id": 5, "seed": 0}
    # Not as it is decorated: these tensors cannot be those of inference mode.
    with torch.no_grad():
        found = {
            a.prompt: a for a in generate_many.__wrapped__(make(*away, move(copy.deepcopy(policy))), texts, **options)
        }
    with _disable_current_modes():
        expected = {a.prompt: a for a in generate_many(make(small, large, policy), texts, **options)}
    assert found == expected


@pytest.mark.parametrize("decoder", ["autoregressive", "mmtad", "Exact", "backoff"])
def test_the_fused_forward_is_there_too(decoder, away, prompts, monkeypatch):
    """As on CUDA, where it takes the place of every Llama's own."""
    monkeypatch.setattr(lm_module, "family", lambda model: True)
    assert all(lm.fused_forward() is not None for lm in away)
    check((DECODERS | DECIDERS)[decoder], away, prompts, Sampling(), POLICIES["rule"])


PROCESSORS = {
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[7], [8, 9]],
    "sequence_bias": [[[6], 1.5], [[3, 4], -2.0]],
    "suppress_tokens": [11],
    "begin_suppress_tokens": [12],
    "min_new_tokens": 3,
    "forced_eos_token_id": 5,
    "exponential_decay_length_penalty": (2, 1.1),
}


@pytest.mark.parametrize(
    "decoder",
    mostly_slow(
        ["autoregressive", "lookup", "mtad", "mmtad", "specinfer", "Exact", "stop", "backoff"], ["mtad", "stop"]
    ),
)
def test_processors_are_there_and_make_nobody_wait(decoder, away, prompts, monkeypatch):
    make, policy = (DECODERS | DECIDERS)[decoder], POLICIES["rule"]
    for lm in (large, away[1]):
        for name, value in PROCESSORS.items():
            monkeypatch.setattr(lm.model.generation_config, name, value, raising=False)
    check(make, away, prompts, Sampling(1.0, frequency_penalty=0.5), policy)
    state = start(make(*away, move(copy.deepcopy(policy))), *(part.to(DEVICE) for part in prompts), 8, 5, Sampling(), 0)
    logits = torch.randn(4, 37).to(DEVICE)
    before = Elsewhere.waits
    for part in (logits, logits[:, None]):
        state.processed(part, state.buffer.rows, state.buffer.lengths)
    assert Elsewhere.waits == before


@pytest.mark.parametrize("decoder", ["mmtad", "specinfer", "Exact", "backoff"])
def test_a_draft_that_lacks_tokens_is_masked_there(decoder, away, prompts):
    """It has 30 of 37 tokens, in its tokenizer and in its head."""
    few = copy.deepcopy(small.model)
    few.resize_token_embeddings(30)
    make = (DECODERS | DECIDERS)[decoder]
    here = [LM(few, words(30)), LM(large.model, words())]
    there = [LM(move(copy.deepcopy(few)), words(30)), LM(away[1].model, words())]
    policy = POLICIES["rule"]
    found = generate(make(*there, move(copy.deepcopy(policy))), *(part.to(DEVICE) for part in prompts), **OPTIONS)
    with _disable_current_modes():
        expected = generate(make(*here, policy), *prompts, **OPTIONS)
    assert found.sequences.tolist() == expected.sequences.tolist()
    assert (found.sequences[:, 9:] >= 30).any()


def test_the_device_refuses_what_is_not_on_it(away):
    here, there = torch.arange(3), torch.arange(3, device=DEVICE)
    for mixed in (lambda: here + there, lambda: there[here], lambda: torch.where(there > 0, here, there)):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    waits = Elsewhere.waits
    assert bool((there > 1).any()) and there[1].item() == 1 and there.tolist() == [0, 1, 2]
    assert Elsewhere.waits == waits + 3
    assert (there + 1).to("cpu").tolist() == [1, 2, 3] and (there + 1).device == DEVICE
