"""Guarded regret: every clause against a case done by hand, and the order it must put texts in."""

import re

import numpy as np
import pytest
import torch
from tiny_models import tiny

from decoding import Autoregressive, Backoff, Sampling, generate
from decoding.models.defaults import DRAFTER, default_pair
from policies import Rule
from train.data.prompts import load_prompts
from train.quality.guarded_regret import Score, guarded_regret, score
from train.quality.loops import repeats, token_forms

EOS = (2, 9)
GRAM = [11, 12, 13, 14, 15, 16]


def loss(answer, reference, regret=0.0, best=None, eos=EOS):
    """The loss of ``answer`` when its tokens have these regrets and the large model's best tokens are ``best``."""
    regret = np.broadcast_to(np.asarray(regret, float), len(answer))
    best = np.asarray(answer if best is None else best)
    return guarded_regret(Score(regret, -regret, best), answer, reference, eos, None)


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


COUNTED = {
    "numbers": "".join(f"{i}. Be kind.\n" for i in range(7, 23)),
    "bullets": "- Be kind to all.\n* Be kind to all.\n+ Be kind to all.\n" * 4,
    "letter case": "Be kind to all. BE KIND TO ALL. be kind to all. bE kInD tO aLl. BE kind TO all. " * 3,
    "numbers of several tokens, blanks": "".join(f"In {i * i}  we  went on. " for i in range(1995, 2010)),
}
LISTS = {
    "numbered items": "1. Apples\n2. Bread\n3. Milk and tea\n4. Rice\n5. Salt\n6. Oil\n7. Eggs\n",
    "bullets": "- wash it\n- peel that\n- cut them up\n- fry some\n- eat\n",
    "a table of numbers": "| 1 | 2 | 3 |\n| 4 | 5 | 6 |\n| 7 | 8 | 9 |\n| 10 | 11 | 12 |\n",
    "sums": "3 + 4 = 7\n5 + 6 = 11\n8 + 9 = 17\n10 + 2 = 12\n",
    "counting": "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16",
}


class Words:
    """A tokenizer of one text: words with the space before them, single digits, marks, line breaks."""

    def __init__(self, text):
        self.pieces = re.findall(r" ?[A-Za-z]+|\d| ?[^\w\s]|\s", text)
        self.names = sorted(set(self.pieces))
        self.ids = list(map(self.names.index, self.pieces))

    def __len__(self):
        return len(self.names)

    def decode(self, ids):
        return self.names[ids[0]]


@pytest.mark.parametrize("name", COUNTED)
def test_a_loop_with_a_counter_costs_in_full_from_its_third_turn_on(name):
    one = Words(COUNTED[name])
    assert "".join(one.pieces) == COUNTED[name]
    found = repeats(one.ids, one.ids, [], token_forms(one))
    assert found[-int(0.7 * len(found)) :].all(), name  # two turns are free, and what completes the first n-gram
    assert not repeats(one.ids, one.ids, one.ids, token_forms(one)).any()  # the large model's own
    assert repeats(one.ids, one.ids, [], None).mean() < found.mean()


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_different_items_are_no_loops(name):
    one = Words(LISTS[name])
    assert not repeats(one.ids, one.ids, [], token_forms(one)).any()


def test_another_token_in_the_place_of_each_is_judged_by_what_stands_before_it():
    text = "".join(f"{i}. Be kind.\n" for i in range(95, 105))
    one = Words(text + " no")
    answer, other = one.ids[:-1], one.ids[-1]
    forms = token_forms(one)
    assert not repeats(answer, [other] * len(answer), [], forms).any()
    expected = [
        repeats([*answer[:i], c], [*answer[:i], c], [], forms)[-1] for i in range(len(answer)) for c in range(len(one))
    ]
    found = np.array([repeats(answer, [c] * len(answer), [], forms) for c in range(len(one))])
    assert found.T.ravel().tolist() == expected and any(expected)


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
        assert guarded_regret(judged, answer, answer, (2,), None) == 0


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
            losses[name].append(guarded_regret(judged, texts[name], texts["greedy"], eos, token_forms(large.tokenizer)))
    mean = {name: np.mean(values) for name, values in losses.items()}
    assert mean["greedy"] == pytest.approx(0, abs=1e-4)
    assert mean["greedy"] < mean["sampled"] < mean["small"] < mean["word"], mean
