"""Oracles: bounds at both ends, the rule they claim at every token, and rows that know nothing of each other."""

import itertools
import math
from functools import partial

import pytest
import torch
from tiny_models import nudged
from tiny_runs import toy_pair, toy_prompts

from decoding import Autoregressive, Backoff, generate
from decoding.models.settings import end_tokens
from experiments.backoff_tables.oracles import Oracle, oracle
from policies import Rule
from train.common.generations import write
from train.quality.guarded_regret import answer_logits

NEW = 20
CLOSE = 1e-4
"""nats; closer to the cut than that, a batch may round to the other side"""
prompts = toy_prompts(10)


@pytest.fixture(scope="module")
def pair():
    return toy_pair()


@pytest.fixture(scope="module")
def three(pair):
    small, large = pair
    middle = nudged(large, 0.15, seed=9)
    middle.tokenizer = large.tokenizer
    return [small, middle, large]


def answers(decoder):
    return [answer for answer, _ in write(decoder, prompts, NEW)]


def shares(decoder):
    writers = [w for _, ws in write(decoder, prompts, NEW) for w in ws]
    return sum(w == len(decoder.models) - 1 for w in writers) / len(writers)


@torch.inference_mode()
def divergences(feature, small, large, prompt, answer):
    """[n] what an oracle of this pair would have seen at every position of ``answer``, from one plain forward each."""
    q = answer_logits(small, prompt.ids, answer).log_softmax(-1)
    p = answer_logits(large, prompt.ids, answer).log_softmax(-1)
    if feature == "kl":
        return (q.exp() * (q - p)).sum(-1), q.argmax(-1)
    return p.amax(-1) - p.gather(1, q.argmax(-1, keepdim=True)).squeeze(1), q.argmax(-1)


def test_regret_above_nothing_writes_the_large_models_text_with_fewer_of_its_tokens(pair):
    above = oracle(pair, "target_regret", 0.0)
    assert answers(above) == answers(Autoregressive(pair[1])) != answers(Autoregressive(pair[0]))
    assert 0.1 < shares(above) < 0.9


def test_kl_above_nothing_hands_on_everything(pair):
    assert shares(oracle(pair, "kl", -1.0)) == 1
    assert answers(oracle(pair, "kl", 0.0)) == answers(Autoregressive(pair[1]))


@pytest.mark.parametrize("feature", ["kl", "target_regret"])
def test_above_everything_the_small_model_is_alone(pair, feature):
    make = partial(oracle, feature=feature, cut=math.inf)
    assert write(make(pair), prompts, NEW) == write(Backoff(pair, Rule.never()), prompts, NEW)
    alone = make(pair, verify_eos=False)
    assert answers(alone) == answers(Autoregressive(pair[0]))
    assert shares(alone) == 0


@pytest.mark.parametrize(("feature", "cut"), [("kl", 0.6), ("target_regret", 0.5)])
def test_each_token_is_handed_on_exactly_where_the_next_model_is_that_far(three, feature, cut):
    seen = [0, 0, 0]
    for models in (three[::2], three):
        ends = set(end_tokens(models[-1]))
        for prompt, (answer, writers) in zip(prompts, write(oracle(models, feature, cut), prompts, NEW), strict=True):
            far = [divergences(feature, *pair, prompt, answer) for pair in itertools.pairwise(models)]
            for position, writer in enumerate(writers):
                expected = 0
                for values, best in far:
                    handed = float(values[position]) > cut or int(best[position]) in ends
                    if not handed:
                        break
                    expected += 1
                if all(abs(float(values[position]) - cut) > CLOSE for values, _ in far):
                    assert writer == expected
                    seen[writer] += 1
    assert min(seen) > 5


def test_a_batch_is_its_rows(three):
    for decoder in (oracle(three, "kl", 0.6), oracle(three[::2], "target_regret", 0.5)):
        assert write(decoder, prompts, NEW) == [write(decoder, [prompt], NEW)[0] for prompt in prompts]


def test_what_an_oracle_reads_is_counted_not_hidden(pair):
    ids, how = torch.tensor([prompts[0].ids]), {"max_new_tokens": 8, "eos_token_id": ()}
    plain, asking = (generate(kind(pair, Rule.never()), ids, **how) for kind in (Backoff, Oracle))
    assert plain.sequences.tolist() == asking.sequences.tolist()
    assert plain.counts["calls"] == [8, 0]
    assert asking.counts["calls"] == [8, 8]
