"""Multi-token joint decoding: every block against all blocks, enumerated by a plain forward."""

from itertools import product

import pytest
import torch
from acceptance_laws import warped
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import eager, greedy, tiny

from decoding import MTJD, Autoregressive, Sampling, generate
from decoding.decoders import mtjd as module
from decoding.state.sampling import DRAW, counter_noise

pytestmark = pytest.mark.sampled

VOCAB = 5
target = tiny("qwen3", layers=2, seed=1, vocab_size=VOCAB, initializer_range=0.1)
reference = eager(target)
PROMPTS = torch.tensor([[0, 3, 1], [2, 2, 4]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
SAMPLING = {
    "greedy": Sampling(),
    "T=1": Sampling(1.0),
    "T=0.5": Sampling(0.5),
    "k=7": Sampling(1.0, top_k=7),
    "p=0.6": Sampling(1.3, top_p=0.6),
}


@torch.no_grad()
def joint(text, size, ends=()):
    """{block: log-probability} of all blocks of ``size`` tokens after ``text``, or fewer up to one of ``ends``."""
    blocks = torch.tensor(list(product(range(VOCAB), repeat=size)))
    texts = torch.cat([torch.tensor(text).expand(len(blocks), -1), blocks], 1)
    logp = reference(texts).logits[:, len(text) - 1 : -1].double().log_softmax(-1)
    steps = logp.gather(2, blocks[..., None]).squeeze(2)
    found = {}
    for block, logs in zip(blocks.tolist(), steps.tolist(), strict=True):
        n = next((i + 1 for i, token in enumerate(block) if token in ends), size)
        found[tuple(block[:n])] = sum(logs[:n])
    return found


def by_hand(text, block, budget, ends, sampling, seed):
    """The answer, block by block: a block is one token of a large vocabulary, in the order of its tokens."""
    answer = []
    while len(answer) < budget and not (answer and answer[-1] in ends):
        size = min(block, budget - len(answer))
        found = joint(text + answer, size, ends)
        # A block that has ended stands where it would with its last token repeated.
        blocks = sorted(found, key=lambda b: b + b[-1:] * (size - len(b)))
        p = warped(torch.tensor([[found[b] for b in blocks]]), sampling)[0]
        u = 0.0 if sampling.greedy else float(counter_noise(torch.tensor(seed), torch.tensor(len(answer)), DRAW))
        chosen = int((p.cumsum(0) <= u).sum())
        answer += blocks[chosen]
    return answer


@pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING)
@pytest.mark.parametrize("ends", [(), (4,), (0, 3)], ids=str)
@pytest.mark.parametrize("block", [1, 2, 3])
def test_blocks_are_those_of_the_joint(block, ends, sampling):
    ids, mask = PROMPTS
    result = generate(
        MTJD(target, block), ids, mask, max_new_tokens=7, eos_token_id=ends, pad_token_id=0, sampling=sampling, seed=11
    )
    for row, prompt in enumerate(([3, 1], [2, 2, 4])):
        expected = by_hand(prompt, block, 7, ends, sampling, 11 + row)
        assert result.sequences[row, 3:][: int(result.lengths[row])].tolist() == expected


def test_greedy_blocks_are_likelier_than_greedy_tokens():
    """The whole answer as one block: no text is likelier, and greedy token by token often is not the likeliest."""
    ids = torch.tensor(list(product(range(VOCAB), repeat=2)))
    best, plain = (
        generate(decoder, ids, max_new_tokens=4, eos_token_id=()).sequences[:, 2:].tolist()
        for decoder in (MTJD(target, 4), Autoregressive(target))
    )
    assert best != plain
    for prompt, block, tokens in zip(ids.tolist(), best, plain, strict=True):
        found = joint(prompt, 4)
        assert found[tuple(block)] == max(found.values()) >= found[tuple(tokens)]


def test_blocks_of_one_and_beams_of_one_are_plain_decoding(prompts):
    ids, mask = prompts
    lm = tiny("llama", layers=2, seed=1)
    expected = greedy(lm, ids, mask, 9)
    for decoder in (MTJD(lm, 1), MTJD(lm, 3, beams=1)):
        assert torch.equal(generate(decoder, ids, mask, max_new_tokens=9, eos_token_id=()).sequences, expected)
    options = {"max_new_tokens": 9, "eos_token_id": 5, "sampling": Sampling(1.2, top_k=8), "seed": 4, "pad_token_id": 0}
    plain = generate(Autoregressive(lm), ids, mask, **options)
    assert torch.equal(generate(MTJD(lm, 1), ids, mask, **options).sequences, plain.sequences)


def beam_search(text, size, width, ends):
    """Beam search over lists, each step by a forward of its own."""
    beams = [((), 0.0)]
    for _ in range(size):
        grown = []
        for block, score in beams:
            if block and block[-1] in ends:
                grown.append((block, score))
            else:
                grown += [(block + b, score + s) for b, s in joint(text + list(block), 1).items()]
        beams = sorted(grown, key=lambda beam: -beam[1])[:width]
    return beams


@pytest.mark.parametrize("width", [1, 2, 6, 5**3])
@pytest.mark.parametrize("ends", [(), (4,)], ids=str)
def test_beams_are_those_of_a_beam_search(width, ends):
    for text in ([3, 1], [0, 4], [2, 2]):
        answer = []
        while len(answer) < 6 and not (answer and answer[-1] in ends):
            answer += beam_search(text + answer, 3, width, ends)[0][0]
        result = generate(MTJD(target, 3, beams=width), torch.tensor([text]), max_new_tokens=6, eos_token_id=ends)
        assert result.sequences[0, 2:].tolist() == answer


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    block=st.integers(1, 3),
    beams=st.sampled_from([None, 1, 3, 40]),
    budget=st.integers(1, 8),
    ends=st.sets(st.integers(0, VOCAB - 1), max_size=2),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 99),
)
def test_batches_ends_and_budgets(block, beams, budget, ends, temperature, seed):
    ids, mask = PROMPTS
    decoder = MTJD(target, block, beams)
    options = {"max_new_tokens": budget, "eos_token_id": sorted(ends), "sampling": Sampling(temperature)}
    batch = generate(decoder, ids, mask, seed=seed, **options)
    for row, prompt in enumerate((2, 3)):
        one = generate(decoder, ids[row : row + 1, 3 - prompt :], seed=seed + row, **options)
        new, answer = int(one.lengths), one.sequences[0, prompt:].tolist()
        assert batch.sequences[row, 3 : 3 + new].tolist() == answer
        assert new == batch.lengths[row] <= budget
        assert not set(answer[:-1]) & ends
        assert new == budget or answer[-1] in ends


def test_reading_in_parts_changes_nothing(monkeypatch):
    ids, mask = PROMPTS
    whole, parts = (MTJD(target, 3) for _ in range(2))
    options = {"max_new_tokens": 7, "eos_token_id": (4,), "sampling": Sampling(1.0), "seed": 3}
    expected = generate(whole, ids, mask, **options)
    monkeypatch.setattr(module, "SLOTS", 4)
    found = generate(parts, ids, mask, **options)
    assert torch.equal(found.sequences, expected.sequences)
    assert found.counts["calls"][0] > expected.counts["calls"][0] > 0


def test_too_many_blocks_are_refused_by_name():
    lm = tiny("llama", layers=1)
    MTJD(lm, 3), MTJD(lm, 9, beams=2)
    with pytest.raises(ValueError, match=r"37 \*\* 4 blocks"):
        MTJD(lm, 4)
    for values in ((0,), (2, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            MTJD(lm, *values)
