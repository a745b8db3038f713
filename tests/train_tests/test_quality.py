"""Guarded regret: every clause against a case done by hand, and the order it must put texts in."""

import numpy as np
import pytest
import torch
from tiny_models import tiny

from decoding import Autoregressive, Backoff, Sampling, generate
from decoding.models.defaults import DRAFTER, default_pair
from policies import Rule
from train.data.prompts import load_prompts
from train.quality.guarded_regret import Score, guarded_regret, score

EOS = (2, 9)
GRAM = [11, 12, 13, 14, 15, 16]


def loss(answer, reference, regret=0.0, best=None, eos=EOS):
    """The loss of ``answer`` when its tokens have these regrets and the large model's best tokens are ``best``."""
    regret = np.broadcast_to(np.asarray(regret, float), len(answer))
    best = np.asarray(answer if best is None else best)
    return guarded_regret(Score(regret, -regret, best), answer, reference, eos)


def test_a_token_costs_its_regret_up_to_the_cap():
    assert loss([11, 12, 13, 14], [11], [0.0, 2.5, 5.0, 80.0]) == pytest.approx((0 + 0.5 + 1 + 1) / 4)


def test_a_repeated_6_gram_costs_one_where_it_is_complete():
    answer = GRAM + GRAM
    assert loss(answer, [20, 21]) == pytest.approx(1 / 12)
    assert loss([*answer, 11, 12], [20, 21]) == pytest.approx(3 / 14)
    assert loss(answer, [20, 21], 0.5) == pytest.approx((11 * 0.1 + 1) / 12)
    assert loss(GRAM[:5] * 2, [20]) == pytest.approx(0)  # 5-grams may come back


def test_a_repetition_of_the_reference_is_free():
    assert loss(GRAM + GRAM, [20, *GRAM, 21]) == 0
    assert loss(GRAM + GRAM, [20, *GRAM[:5], 21]) == pytest.approx(1 / 12)


def test_a_loop_costs_one_everywhere_but_at_its_start():
    assert loss([7] * 20, [11, 12, 13]) == pytest.approx(14 / 20)


@pytest.mark.parametrize("stop", EOS)
def test_all_that_follows_an_ignored_stop_costs_one(stop):
    best = [11, stop, 13, 14]
    assert loss([11, 12, 13, 14], [11, stop], [0, 1.2, 0, 0], best) == pytest.approx(3 / 4)
    assert loss([11, 12, 13, 14], [11, stop], [0, 0.9, 0, 0], best) == pytest.approx(0.18 / 4)  # it hardly wanted to
    assert loss([11, 12, 13, 14], [11], [0, 1.2, 0, 0], best, eos=()) == pytest.approx(0.24 / 4)


def test_another_eos_is_a_stop_too():
    assert loss([11, 9], [11, 2], [0, 3.0], [11, 2]) == pytest.approx(0.6 / 2)


def test_tokens_missing_after_an_unwanted_stop_cost_one():
    reference = [11, 12, 13, 14, 15, 2]
    assert loss([11, 12, 2], reference, [0, 0, 2.0], [11, 12, 13]) == pytest.approx((0.4 + 3) / 6)
    assert loss([11, 12, 2], reference, [0, 0, 0.9], [11, 12, 13]) == pytest.approx(0.18 / 3)  # nearly as good
    assert loss([11, 12, 2], [11, 2], [0, 0, 2.0], [11, 12, 13]) == pytest.approx(0.4 / 3)  # nothing is missing
    assert loss([11, 12, 13], reference, [0, 0, 2.0], [11, 12, 17]) == pytest.approx(0.4 / 3)  # cut by the budget


def test_an_empty_answer_lacks_everything():
    assert loss([], [11, 12]) == 1
    assert loss([], []) == 0


@pytest.fixture(scope="module")
def large():
    return tiny(layers=2, seed=2)


def _write(decoder, prompt, new=40, **options):
    return generate(decoder, torch.tensor([prompt]), max_new_tokens=new, **options).sequences[0, len(prompt) :].tolist()


def test_the_large_model_s_own_text_scores_exactly_0(large):
    for seed in range(8):
        prompt = torch.randint(3, 37, (5,), generator=torch.Generator().manual_seed(seed)).tolist()
        answer = _write(Autoregressive(large), prompt)
        (judged,) = score(large, [prompt], [answer])
        assert judged.best.tolist() == answer
        assert guarded_regret(judged, answer, answer, (2,)) == 0


@torch.no_grad()
def test_score_is_the_log_softmax_of_the_large_model(large):
    prompts, answers = [[5, 6, 7], [30]], [[8, 9, 10, 11], [12, 2]]
    judged = score(large, prompts, answers)
    for prompt, answer, one in zip(prompts, answers, judged, strict=True):
        for i, token in enumerate(answer):
            logits = large.model(torch.tensor([prompt + answer[:i]])).logits[0, -1].double()
            logp = logits - logits.exp().sum().log()
            assert one.logprob[i] == pytest.approx(float(logp[token]), abs=1e-4)
            assert one.regret[i] == pytest.approx(float(logp.max() - logp[token]), abs=1e-4)
            assert one.best[i] == int(logp.argmax())
        assert len(one.regret) == len(answer)


@pytest.mark.real
@pytest.mark.slow
def test_the_order_of_texts_on_the_real_pair():
    if not DRAFTER.exists():
        pytest.skip(f"there is no drafter at {DRAFTER}")
    try:
        small, large = default_pair()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    eos = large.model.generation_config.eos_token_id
    eos = (eos,) if isinstance(eos, int) else tuple(eos)
    word = large.tokenizer(" word", add_special_tokens=False)["input_ids"]
    losses = {"greedy": [], "sampled": [], "small": [], "word": []}
    for seed, prompt in enumerate(load_prompts(None, large.tokenizer, limit=6)):
        texts = {
            "greedy": _write(Autoregressive(large), prompt.ids, 64),
            "sampled": _write(Autoregressive(large), prompt.ids, 64, sampling=Sampling(0.7), seed=seed),
            "small": _write(Backoff([small, large], Rule.never(), verify_eos=False), prompt.ids, 64),
            "word": (word * 64)[:64],
        }
        for name, judged in zip(texts, score(large, [prompt.ids] * 4, list(texts.values())), strict=True):
            losses[name].append(guarded_regret(judged, texts[name], texts["greedy"], eos))
    mean = {name: np.mean(values) for name, values in losses.items()}
    assert mean["greedy"] == pytest.approx(0, abs=1e-4)
    assert mean["greedy"] < mean["sampled"] < mean["small"] < mean["word"], mean
