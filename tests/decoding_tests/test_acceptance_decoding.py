"""Acceptance rules at work in a decoder: rows apart, ends to the token, and noise that no two rounds share."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ending_tokens, nudged, tiny

from decoding import (
    Autoregressive,
    Block,
    Cascade,
    Divergence,
    Exact,
    FixedRatio,
    Joint,
    Learned,
    Lenient,
    PromptLookup,
    Rollback,
    Sampling,
    Speculative,
    Typical,
    generate,
)
from decoding.acceptance.rules import RULES
from decoding.drafting import draft_model
from policies import Random, Rule

pytestmark = pytest.mark.sampled

NEW, SEED = 14, 40
large = tiny("llama", layers=2, seed=1)
small = nudged(large, 0.1)
cut = Rule("entropy", 2.4)
ACCEPT = {
    "Exact": Exact(),
    "Block": Block(),
    "Lenient": Lenient(0.3),
    "Typical": Typical(),
    "Divergence": Divergence("js", 0.05),
    "Cascade": Cascade(alpha=0.6),
    "Rollback": Rollback(2.0),
    "Joint": Joint(0.3),
    "Joint raw": Joint(0.3, filtered=False),
    "FixedRatio": FixedRatio(0.7),
    "Learned": Learned(Random(0.6)),
    "Learned on both": Learned(Rule("kl", 0.3)),
}
SAMPLING = {"greedy": Sampling(), "filtered": Sampling(temperature=1.2, top_k=9, top_p=0.9)}
each_rule = pytest.mark.parametrize("rule", ACCEPT.values(), ids=ACCEPT)
each_sampling = pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING)


def test_every_rule_is_here():
    assert {type(rule).__name__ for rule in ACCEPT.values()} == set(RULES)


@pytest.mark.sampled
@each_sampling
@each_rule
def test_batch_is_single_runs(rule, sampling, prompts):
    ids, mask = prompts
    width = ids.shape[1]
    decoder = Speculative([small, large], length=4, stop=cut, accept=rule, strict_prefix=2)
    options = {"max_new_tokens": NEW, "sampling": sampling, "pad_token_id": 0}
    free = generate(decoder, ids, mask, eos_token_id=(), seed=SEED, **options)
    eos = ending_tokens(free.sequences[:, width:])[0]
    batch = generate(decoder, ids, mask, eos_token_id=eos, seed=SEED, **options)
    assert len(batch.lengths.unique()) > 1
    for row, prompt in enumerate(mask.sum(1).tolist()):
        one = generate(decoder, ids[row : row + 1, width - prompt :], eos_token_id=eos, seed=SEED + row, **options)
        new = int(one.lengths)
        assert torch.equal(one.sequences[0, prompt:], batch.sequences[row, width : width + new])
        assert torch.equal(one.writers[0], batch.writers[row, :new])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(list(ACCEPT)),
    length=st.integers(1, 6),
    budget=st.integers(1, 12),
    ends=st.sets(st.integers(0, 36), max_size=6),
    temperature=st.sampled_from([0.0, 1.0]),
    lookup=st.booleans(),
    seed=st.integers(0, 99),
)
def test_ends_are_met_to_the_token(name, length, budget, ends, temperature, lookup, seed):
    """The answer without an EOS, cut at the first of ``ends``; and never a token more than the budget."""
    ids = torch.randint(3, 37, (3, 6), generator=torch.Generator().manual_seed(seed))
    draft = PromptLookup(2) if lookup else small
    decoder = Speculative([draft, large], length=length, accept=ACCEPT[name])
    options = {"max_new_tokens": budget, "sampling": Sampling(temperature), "seed": seed, "pad_token_id": 0}
    free = generate(decoder, ids, eos_token_id=(), **options)
    assert free.lengths.tolist() == [budget] * 3
    cut = generate(decoder, ids, eos_token_id=sorted(ends), **options)
    answers = (result.sequences[:, 6:].tolist() for result in (free, cut))
    for whole, part, new in zip(*answers, cut.lengths.tolist(), strict=True):
        found = [i + 1 for i, token in enumerate(whole) if token in ends]
        assert new == min([*found, budget])
        assert part[:new] == whole[:new]


@each_rule
def test_strict_prefix_is_the_target(rule, prompts):
    """Greedy: as many tokens as are strict are the target's own, and without it some rule would change them."""
    ids, mask = prompts
    options = {"max_new_tokens": NEW, "eos_token_id": ()}
    target = generate(Autoregressive(large), ids, mask, **options).sequences
    far = tiny("llama", layers=1, seed=9)
    for strict in (1, 3, NEW):
        decoder = Speculative([far, large], accept=rule, strict_prefix=strict)
        result = generate(decoder, ids, mask, **options).sequences
        assert torch.equal(result[:, : 9 + strict], target[:, : 9 + strict])


def test_a_strict_prefix_is_needed():
    lax = generate(Speculative([tiny("llama", layers=1, seed=9), large], accept=Rollback(9.0)), torch.tensor([[3, 4]]))
    assert lax.writers[0, 0] == 0


@pytest.mark.parametrize("fresh", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_rounds_share_no_noise(fresh, monkeypatch):
    """Block looks beyond a rejection; were positions to keep their noise, the next draft would be biased (and was)."""
    if not fresh:
        old = lambda text, rows, starts, place, stream, length: text.uniform(rows, starts + place, stream)  # noqa: E731
        monkeypatch.setattr(draft_model, "draft_noise", old)
        monkeypatch.setattr("decoding.decoders.speculative.draft_noise", old)
    vocab, new, draws = 3, 5, 30_000
    target = tiny("qwen3", layers=1, seed=3, vocab_size=vocab, initializer_range=0.2)
    draft = nudged(target, 0.9)
    prompt = torch.tensor([[1, 2]])
    answers = torch.tensor(list(product(range(vocab), repeat=new)))
    with torch.no_grad():
        logits = target.model(torch.cat([prompt.expand(len(answers), -1), answers], 1)).logits[:, 1:-1]
    truth = logits.double().softmax(-1).gather(2, answers[..., None]).squeeze(2).prod(1)
    decoder = Speculative([draft, target], length=4, accept=Block())
    result = generate(
        decoder,
        prompt.expand(draws, -1),
        max_new_tokens=new,
        eos_token_id=(),
        sampling=Sampling(1.0),
        seed=1,
    )
    drawn = (result.sequences[:, 2:] * vocab ** torch.arange(new - 1, -1, -1)).sum(1)
    expected, observed = truth * draws, torch.bincount(drawn, minlength=len(answers))
    usual = expected > 8
    statistic = ((observed - expected).square() / expected)[usual].sum()
    p = torch.special.gammaincc(usual.sum().double() / 2, statistic / 2)
    assert p > 0.001 if fresh else p < 1e-6
