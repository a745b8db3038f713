"""SpecInfer writes the target's own text: to the token when greedy, in distribution when sampling."""

from itertools import product

import pytest
import torch
from acceptance_laws import warped
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import eager, greedy_text, nudged, tiny

from decoding import PromptLookup, Sampling, SpecInfer, Speculative, generate
from decoding.decoders.specinfer import TreeShape, try_children

target = tiny(seed=1)
reference = eager(target)
DRAFTS = {"close": nudged(target), "far": nudged(target, 0.3), "itself": target, "stranger": tiny(layers=1, seed=2)}


@given(
    prompts=st.lists(st.lists(st.integers(0, 36), min_size=1, max_size=12), min_size=1, max_size=4),
    draft=st.sampled_from(sorted(DRAFTS)),
    branches=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    budget=st.integers(1, 14),
    eos=st.sets(st.integers(0, 36), max_size=6),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_greedy_is_the_targets_text(prompts, draft, branches, budget, eos):
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    decoder = SpecInfer([DRAFTS[draft], target], branches)
    result = generate(decoder, ids, mask, max_new_tokens=budget, eos_token_id=sorted(eos))
    for row, (prompt, new) in enumerate(zip(prompts, result.lengths.tolist(), strict=True)):
        assert result.sequences[row, width : width + new].tolist() == greedy_text(reference, prompt, budget, eos)


def test_greedy_finds_what_a_chain_misses(prompts):
    ids, mask = prompts
    options = {"max_new_tokens": 24, "eos_token_id": ()}
    chain, tree = (
        generate(decoder, ids, mask, **options).counts["calls"][1]
        for decoder in (Speculative([DRAFTS["far"], target], length=3), SpecInfer([DRAFTS["far"], target], (4, 2, 2)))
    )
    assert tree < chain


def test_one_branch_greedy_takes_as_many_calls_as_a_chain(prompts):
    ids, mask = prompts
    chain, tree = (
        generate(decoder, ids, mask, max_new_tokens=24, eos_token_id=()).counts["calls"][1]
        for decoder in (Speculative([DRAFTS["far"], target], length=3), SpecInfer([DRAFTS["far"], target], (1, 1, 1)))
    )
    assert tree == chain


@pytest.mark.parametrize("zeros", [0, 2])
def test_children_and_rest_are_drawn_from_the_target(zeros):
    generator = torch.Generator().manual_seed(3)
    n, vocab, width = 400_000, 5, 3
    p, q = torch.rand(2, vocab, generator=generator).pow(2)
    q[:zeros] = 0  # as many candidates as children, or fewer
    p, q = (p / p.sum()).expand(n, -1), (q / q.sum()).expand(n, -1)
    gumbel = -(-torch.rand(n, vocab, generator=generator).log()).log()
    tokens = (q.log() + gumbel).topk(width).indices
    uniform = torch.rand(n, width, generator=generator)
    kept, left = try_children(p, q, tokens, uniform, torch.ones(n, dtype=torch.bool))
    rest = torch.multinomial(left, 1, generator=generator).squeeze(1)
    out = torch.where(kept >= 0, tokens.gather(1, kept.clamp(min=0)[:, None]).squeeze(1), rest)
    found = out.bincount(minlength=vocab) / n
    assert (kept > 0).float().mean() > 0.02  # later children are kept too
    torch.testing.assert_close(found, p[0], atol=5 * (0.25 / n) ** 0.5, rtol=0)


def test_rows_that_do_not_go_on_lose_nothing():
    p, q = torch.tensor([[0.1, 0.9]]).repeat(2, 1), torch.tensor([[0.9, 0.1]]).repeat(2, 1)
    kept, left = try_children(p, q, torch.tensor([[0], [0]]), torch.full((2, 1), 0.9), torch.tensor([True, False]))
    assert kept.tolist() == [-1, -1]
    torch.testing.assert_close(left, torch.tensor([[0.0, 1.0], [0.1, 0.9]]))


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(1.3, top_k=3)], ids=["plain", "top-k"])
@pytest.mark.parametrize("branches", [(2, 2), (3, 1, 2)])
def test_sampled_texts_are_distributed_as_the_targets(branches, sampling):
    large = tiny(layers=1, seed=7, vocab_size=5)
    small = nudged(large, 0.5)
    n, new, prompt = 6000, 3, [1, 3, 4]
    ids = torch.tensor([prompt]).expand(n, -1)
    options = {"max_new_tokens": new, "eos_token_id": (), "sampling": sampling, "seed": 0}
    result = generate(SpecInfer([small, large], branches), ids, **options)
    assert result.counts["accepted"] > n // 4
    texts = result.sequences[:, len(prompt) :]
    found = (texts * torch.tensor([25, 5, 1])).sum(1).bincount(minlength=125) / n
    torch.testing.assert_close(found.double(), _law(large, prompt, new, sampling), atol=4.5 * (0.06 / n) ** 0.5, rtol=0)


@torch.no_grad()
def _law(lm, prompt, new, sampling):
    """[vocab ** new] probability of every text, by transformers' warpers."""
    texts = torch.tensor(list(product(range(5), repeat=new)))
    ids = torch.cat([torch.tensor([prompt]).expand(len(texts), -1), texts], 1)
    logits = lm.model(ids).logits[:, len(prompt) - 1 : -1]
    return warped(logits, sampling).gather(2, texts[..., None]).squeeze(2).prod(1)


def test_the_shape_of_a_tree():
    shape = TreeShape((2, 2))
    assert (shape.nodes, shape.widths, shape.levels.tolist()) == (6, [1, 2, 4], [0, 0, 1, 1, 1, 1])
    assert [row.nonzero().flatten().tolist() for row in shape.seen] == [[0], [1], [0, 2], [0, 3], [1, 4], [1, 5]]
    assert shape.children(1, torch.tensor([0, 1])).tolist() == [[2, 3], [4, 5]]
    assert shape.above(1).tolist() == [1, 2]


def test_what_cannot_be_is_refused():
    alibi = tiny("bloom", layers=1)
    for models, branches, match in (
        ([target], (2,), "two models"),
        ([PromptLookup(2), target], (2,), "two models"),
        ([target, target], (), "at least 1"),
        ([target, target], (2, 0), "at least 1"),
        ([alibi, target], (2, 1), "ALiBi"),
        ([target, alibi], (2, 1), "ALiBi"),
    ):
        with pytest.raises(ValueError, match=match):
            SpecInfer(models, branches)
    SpecInfer([alibi, alibi], (1, 1))
