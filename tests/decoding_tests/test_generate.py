"""What generate promises of every decoder: where rows end, who wrote what, and what was counted."""

import pytest
import torch
from tiny_models import greedy, nudged, successor, tiny, words

from decoding import Autoregressive, Backoff, Sampling, Speculative, generate
from policies import Random, Rule

large = tiny("qwen3", layers=2, seed=1)
small = nudged(large)
DECODERS = {
    "autoregressive": Autoregressive(large),
    "backoff": Backoff([small, large], Random(0.5)),
    "speculative": Speculative([small, large], length=7),
}
each = pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)


@each
def test_shapes_and_padding(decoder, prompts):
    ids, mask = prompts
    free = generate(decoder, ids, mask, max_new_tokens=20, eos_token_id=(), seed=0)
    assert free.lengths.tolist() == [20] * 4
    ends = sorted(set(free.sequences[:, 9:].flatten().tolist()))[3:5]
    result = generate(decoder, ids, mask, max_new_tokens=20, eos_token_id=ends, pad_token_id=33, seed=0)
    new = int(result.lengths.max())
    assert result.sequences.shape == (4, 9 + new)
    assert result.writers.shape == (4, new)
    assert result.writers.dtype == torch.int8
    assert torch.equal(result.sequences[:, :9], ids)
    assert len(result.lengths.unique()) > 1
    for answer, writers, length in zip(result.sequences[:, 9:], result.writers, result.lengths.tolist(), strict=True):
        body = answer[: length - 1].tolist()
        assert not set(body) & set(ends)
        assert (answer[length - 1] in ends) or length == 20
        assert set(writers[:length].tolist()) <= set(range(len(decoder.models)))
        assert (answer[length:] == 33).all()
        assert (writers[length:] == -1).all()


@each
@pytest.mark.parametrize("budget", [1, 2, 3, 9])
def test_the_budget_is_met_exactly(decoder, budget, prompts):
    ids, mask = prompts
    result = generate(decoder, ids, mask, max_new_tokens=budget, eos_token_id=())
    assert result.lengths.tolist() == [budget] * 4
    assert result.sequences.shape == (4, 9 + budget)


def test_the_context_may_be_filled_to_its_end():
    ids = torch.arange(3, 25)[None]
    expected = greedy(large, ids, torch.ones_like(ids), 8)
    short = nudged(large, 0.0)
    short.context = 30
    for decoder in (
        Autoregressive(short),
        Backoff([small, short], Rule.always()),
        Speculative([short, short], length=7),
    ):
        assert torch.equal(generate(decoder, ids, max_new_tokens=8, eos_token_id=()).sequences, expected)


def test_a_result_may_be_trained_on():
    result = generate(Autoregressive(large), torch.tensor([[5, 6]]), max_new_tokens=3, eos_token_id=())
    logits = large.model(result.sequences, attention_mask=torch.ones_like(result.sequences)).logits
    logits.logsumexp(-1).sum().backward()
    large.model.zero_grad()


def test_eos_comes_from_the_last_model_unless_it_is_given():
    up, down = successor({}), successor({t: t - 1 for t in range(1, 16)})
    up.model.generation_config.eos_token_id = [9, 11]
    start = torch.tensor([[6], [10]])
    assert generate(Autoregressive(up), start, max_new_tokens=8).lengths.tolist() == [3, 1]
    assert generate(Autoregressive(up), start, max_new_tokens=8, eos_token_id=14).lengths.tolist() == [8, 4]
    assert generate(Autoregressive(up), start, max_new_tokens=8, eos_token_id=()).lengths.tolist() == [8, 8]
    up.model.generation_config.eos_token_id = None
    assert generate(Autoregressive(up), start, max_new_tokens=8).lengths.tolist() == [8, 8]
    down.model.generation_config.eos_token_id = 5
    both = Backoff([up, down], Rule.always())
    assert generate(both, start, max_new_tokens=8).lengths.tolist() == [1, 5]


def test_counts_of_speculative_by_hand():
    """The draft is wrong after 5: it says 3 4 5 0, of which three are kept and 6 follows; then 7 8 9, and 10."""
    target, draft = successor({}), successor({5: 0})
    result = generate(Speculative([draft, target], length=4), torch.tensor([[2]]), max_new_tokens=8, eos_token_id=())
    assert result.sequences.tolist() == [[2, 3, 4, 5, 6, 7, 8, 9, 10]]
    assert result.writers.tolist() == [[0, 0, 0, 1, 0, 0, 0, 1]]
    assert result.counts == {"calls": [7, 2], "tokens_read": [7, 9], "drafted": 7, "accepted": 6, "escalated": []}


def test_counts_of_backoff_by_hand():
    """Every fourth token is handed on, for which the large model reads the four before it."""
    large, small = successor({}), successor({5: 0})
    decoder = Backoff([small, large], lambda step: step.position % 4 == 3)
    result = generate(decoder, torch.tensor([[2]]), max_new_tokens=9, eos_token_id=())
    assert result.sequences.tolist() == [[2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]
    assert result.writers.tolist() == [[0, 0, 0, 1, 0, 0, 0, 1, 0]]
    assert result.counts == {"calls": [9, 2], "tokens_read": [9, 8], "drafted": 0, "accepted": 0, "escalated": [2]}


def test_counts_of_a_ragged_batch_by_hand():
    """Rows of 3 and 1 tokens; padding is not counted, and a row that has ended is not read."""
    ids, mask = torch.tensor([[1, 2, 3], [0, 0, 8]]), torch.tensor([[1, 1, 1], [0, 0, 1]])
    result = generate(Autoregressive(successor({})), ids, mask, max_new_tokens=6, eos_token_id=10)
    assert result.lengths.tolist() == [6, 2]
    assert result.counts["calls"] == [6]
    assert result.counts["tokens_read"] == [(3 + 5) + (1 + 1)]


def test_seconds_add_up(prompts):
    ids, mask = prompts
    seconds = generate(DECODERS["speculative"], ids, mask, max_new_tokens=5, eos_token_id=()).seconds
    assert len(seconds["models"]) == 2
    assert 0 < seconds["prefill"] <= sum(seconds["models"]) <= seconds["total"]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(2.0)], ids=["greedy", "sampling"])
def test_a_padded_head_writes_only_what_the_tokenizer_knows(sampling, prompts):
    """Heads of 37 and 45 rows, both of which like the padding best, and a tokenizer of 30."""
    ids, mask = prompts
    ids = ids % 30
    target, draft = (tiny(layers=1, seed=s, vocab_size=v, initializer_range=0.3) for s, v in ((1, 37), (2, 45)))
    for lm in (target, draft):
        with torch.no_grad():
            lm.model.lm_head.weight[30:] *= 20
    assert (target.model(ids).logits.argmax(-1) >= 30).any()
    target, draft = (type(target)(lm.model, words(30)) for lm in (target, draft))
    for decoder in (
        Autoregressive(target),
        Backoff([draft, target], Random(0.5)),
        Speculative([draft, target]),
        Speculative([target, draft]),
    ):
        result = generate(decoder, ids, mask, max_new_tokens=25, eos_token_id=(), sampling=sampling, seed=0)
        assert result.sequences.max() < 30
        assert len(result.sequences[:, 9:].unique()) > 5
