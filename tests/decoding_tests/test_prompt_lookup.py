"""Prompt lookup: what it proposes, against loops over lists; and the target's own text, whatever it proposes."""

from itertools import product

import pytest
import torch
from acceptance_laws import SAMPLING
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ending_tokens, greedy, successor, tiny

from decoding import Autoregressive, Block, Exact, PromptLookup, Sampling, Speculative, generate
from policies import Rule

large = tiny("llama", layers=2, seed=1)


def looked_up(text, ngram, least, limit):
    """The longest end of ``text`` that stands earlier, at its latest place, copied on as it grows; None if none."""
    for n in range(ngram, least - 1, -1):
        for begin in range(len(text) - n - 1, -1, -1):
            if text[begin : begin + n] == text[len(text) - n :]:
                grown = list(text)
                for i in range(limit):
                    grown.append(grown[begin + n + i])
                return grown[len(text) :]
    return None


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    texts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=4),
    ngram=st.integers(1, 4),
    least=st.integers(1, 4),
    limit=st.integers(1, 9),
    data=st.data(),
)
def test_proposals_are_those_of_a_loop(texts, ngram, least, limit, data):
    least = min(least, ngram)
    ids = torch.randint(0, 3, (len(texts), 14))  # what lies behind a text is anything
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    rows = sorted(data.draw(st.sets(st.integers(0, len(texts) - 1), min_size=1)))
    lengths = torch.tensor([len(texts[r]) for r in rows])
    tokens, counts = PromptLookup(ngram, least).propose(ids, lengths, torch.tensor(rows), limit)
    assert tokens.shape == (len(rows), limit)
    for r, proposed, count in zip(rows, tokens.tolist(), counts.tolist(), strict=True):
        expected = looked_up(texts[r], ngram, least, limit)
        assert count == (0 if expected is None else limit)
        assert expected is None or proposed == expected


@pytest.mark.parametrize("ngram", [1, 3])
@pytest.mark.parametrize("length", [1, 4, 7])
def test_greedy_is_the_target(length, ngram, prompts):
    ids, mask = prompts
    ids = ids % 7 + 3 * (ids % 7 < 3) * mask  # few tokens, so that there is something to find
    eos = ending_tokens(greedy(large, ids, mask, 20)[:, 9:])[0]
    result = generate(
        Speculative([PromptLookup(ngram), large], length=length),
        ids,
        mask,
        max_new_tokens=20,
        eos_token_id=eos,
        pad_token_id=0,
    )
    assert torch.equal(result.sequences, greedy(large, ids, mask, 20, eos))
    assert 0 < result.counts["accepted"] < result.counts["drafted"]
    assert set(result.writers.unique().tolist()) == {-1, 0, 1}


@pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING)
@pytest.mark.parametrize("rule", [Exact(), Block()], ids=["Exact", "Block"])
def test_draws_follow_the_target(rule, sampling):
    """Four tokens of three, enumerated; lookup finds something nearly everywhere."""
    vocab, new, draws = 3, 4, 6000
    target = tiny("qwen3", layers=1, seed=3, vocab_size=vocab, initializer_range=0.2)
    prompt = torch.tensor([[1, 2, 0, 1, 1]])
    answers = torch.tensor(list(product(range(vocab), repeat=new)))
    with torch.no_grad():
        logits = target.model(torch.cat([prompt.expand(len(answers), -1), answers], 1)).logits[:, 4:-1]
    truth = sampling.probabilities(logits).gather(2, answers[..., None]).squeeze(2).prod(1).double()
    result = generate(
        Speculative([PromptLookup(2), target], length=3, accept=rule),
        prompt.expand(draws, -1),
        max_new_tokens=new,
        eos_token_id=(),
        sampling=sampling,
        seed=5,
    )
    drawn = (result.sequences[:, 5:] * vocab ** torch.arange(new - 1, -1, -1)).sum(1)
    expected, observed = truth * draws, torch.bincount(drawn, minlength=len(answers))
    assert result.counts["accepted"] > 0
    assert not observed[expected == 0].any()
    usual = expected > 5
    statistic = ((observed - expected).square() / expected)[usual].sum()
    assert torch.special.gammaincc(usual.sum().double() / 2, statistic / 2) > 0.001


@pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING)
def test_batch_is_single_runs(sampling, prompts):
    ids, mask = prompts
    decoder = Speculative([PromptLookup(2), large], length=5)
    options = {"max_new_tokens": 16, "sampling": sampling, "pad_token_id": 0, "eos_token_id": (4, 9, 11)}
    batch = generate(decoder, ids, mask, seed=3, **options)
    for row, prompt in enumerate(mask.sum(1).tolist()):
        one = generate(decoder, ids[row : row + 1, 9 - prompt :], seed=3 + row, **options)
        new = int(one.lengths)
        assert torch.equal(one.sequences[0, prompt:], batch.sequences[row, 9 : 9 + new])
        assert torch.equal(one.writers[0], batch.writers[row, :new])


def test_counts_by_hand():
    """After 1 2 3 4 1 2 the lookup says 3 4 1 2, of which the target, which counts up to 4, keeps all; 3 follows."""
    target = successor({4: 1})
    result = generate(
        Speculative([PromptLookup(3), target]), torch.tensor([[1, 2, 3, 4, 1, 2]]), max_new_tokens=7, eos_token_id=()
    )
    assert result.sequences.tolist() == [[1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1]]
    assert result.writers.tolist() == [[0, 0, 0, 0, 1, 0, 1]]
    assert result.counts == {"calls": [2], "tokens_read": [12], "drafted": 5, "accepted": 5, "escalated": []}


def test_nothing_found_is_plain_decoding():
    target = successor({})
    result = generate(Speculative([PromptLookup(3), target]), torch.tensor([[2]]), max_new_tokens=6, eos_token_id=())
    plain = generate(Autoregressive(target), torch.tensor([[2]]), max_new_tokens=6, eos_token_id=())
    assert torch.equal(result.sequences, plain.sequences)
    assert result.counts["drafted"] == 0
    assert result.counts["tokens_read"] == plain.counts["tokens_read"]


class Parrot:
    """Any object with ``propose`` may draft: this one says the last token again, twice, in every other row."""

    def propose(self, ids, lengths, rows, limit):
        last = ids[rows, lengths - 1]
        return last[:, None].expand(-1, limit), 2 * (rows % 2)


def test_anything_with_propose_may_draft(prompts):
    ids, mask = prompts
    for sampling in (Sampling(), Sampling(1.0)):
        options = {"max_new_tokens": 9, "eos_token_id": (), "sampling": sampling, "seed": 2}
        result = generate(Speculative([Parrot(), large]), ids, mask, **options)
        assert (result.writers[::2] == 1).all()
        if sampling.greedy:
            assert torch.equal(result.sequences, generate(Autoregressive(large), ids, mask, **options).sequences)


def test_bad_settings_are_refused_by_name():
    for values in ((0,), (3, 4), (3, 0)):
        with pytest.raises(ValueError, match="least <= ngram"):
            PromptLookup(*values)
    with pytest.raises(ValueError, match="stop policy"):
        Speculative([PromptLookup(), large], stop=Rule("entropy", 1.0))
