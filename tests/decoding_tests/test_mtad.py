"""MTAD and MMTAD, step by step, against lists and dicts; what they equal at their edges; ends and counts."""

import random

import pytest
import torch
from acceptance_laws import warped
from hypothesis import given, settings
from hypothesis import strategies as st
from mtad_reference import Reference
from tiny_models import eager, greedy, mostly_slow, nudged, tiny

from decoding import MTAD, Autoregressive, Joint, PromptLookup, Sampling, Speculative, generate
from decoding.generation import commits, start

pytestmark = pytest.mark.sampled

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
                answer = run.buffer.answer(row)
                if len(answer) > before[row]:
                    rounds[row].append(answer[before[row] :])
                    before[row] = len(answer)
    return rounds


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
@pytest.mark.parametrize("name", mostly_slow(PAIRS, ("llama", "gemma2")))
def test_rounds_are_those_of_the_reference(name, tree):
    choose = random.Random(f"{name} {tree}")
    finished = cases = 0
    while cases < 25:
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


near, target = PAIRS["qwen3"]
TREES = pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
NEW = 12


@pytest.fixture
def write():
    """write(decoder, **options): four ragged rows, greedy and without EOS unless told otherwise."""
    ids, mask = padded([[3, 1, 4, 1, 5], [9, 2], [6], [5, 3, 5]])

    def run(decoder, **options):
        return generate(decoder, ids, mask, **{"max_new_tokens": NEW, "eos_token_id": (), "seed": 7} | options)

    run.ids, run.mask = ids, mask
    return run


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("tau", [0.0, 0.3, 0.9, float("inf")])
def test_one_beam_is_speculative_with_the_joint_rule(write, tau, filtered):
    expected = write(Speculative([near, target], length=3, accept=Joint(tau, filtered)))
    for tree in (False, True):
        found = write(MTAD([near, target], beams=1, length=3, tau=tau, tree=tree, filtered=filtered))
        assert torch.equal(found.sequences, expected.sequences)
        assert torch.equal(found.writers, expected.writers)
        assert found.counts["accepted"] == expected.counts["accepted"]


@TREES
def test_what_is_never_rejected_and_what_always(write, tree):
    greedily = greedy(target, write.ids, write.mask, NEW)
    whole = write(MTAD([near, target], length=3, tau=0.0, tree=tree))
    assert whole.writers.tolist() == [[0, 0, 0, 1] * 3] * 4
    nothing = write(MTAD([near, target], length=3, tau=float("inf"), tree=tree))
    assert nothing.counts["accepted"] == 0 < nothing.counts["drafted"]
    assert torch.equal(nothing.sequences, greedily)


@TREES
@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0, 2.0])
def test_greedy_and_filtered_is_the_target(write, tau, tree):
    """The filter of a greedy target leaves one token: whatever the beams are, only its own text is kept."""
    found = write(MTAD([near, target], beams=3, tau=tau, tree=tree, filtered=True))
    assert torch.equal(found.sequences, greedy(target, write.ids, write.mask, NEW))
    assert found.counts["accepted"] > 0 or tau >= 1


@TREES
def test_a_draft_by_the_target_itself(write, tree):
    for sampling in (Sampling(), Sampling(1.0), Sampling(0.8, top_k=5)):
        for filtered in (False, True)[: 1 if sampling.greedy else 2]:
            kept, rejected = (
                write(MTAD([target, target], 4, 3, tau, tree, filtered), sampling=sampling) for tau in (0.99, 1.01)
            )
            assert kept.counts["accepted"] == kept.counts["drafted"] == 4 * 9
            assert tree or rejected.counts["accepted"] == 0


@TREES
@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_round_is_one_target_forward_and_as_many_of_the_draft_as_tokens(write, length, tree):
    new = 6 * (length + 1)
    result = write(MTAD([near, target], beams=3, length=length, tau=0.0, tree=tree), max_new_tokens=new)
    assert result.counts["calls"] == [6 * length, 6]
    texts = write.mask.sum().item() + 4 * (new - length - 1)
    # The target reads each text once, and beside the drafted tokens that were kept only those of other beams.
    assert result.counts["tokens_read"][1] == texts + 4 * length + (4 * 6 * 2 * length if tree else 0)
    assert result.counts["drafted"] == result.counts["accepted"] == 4 * 6 * length


def test_a_tree_keeps_at_least_what_a_chain_keeps(write):
    """From the same texts, a round each: all nodes of the chain are in the tree, and are asked the same."""
    tokens = torch.arange(11)
    ids = torch.cartesian_prod(tokens, tokens)
    kept = {}
    for tree in (False, True):
        run = start(MTAD([near, target], tree=tree), ids, None, NEW, (), Sampling(1.0), 5)
        next(commits(MTAD([near, target], tree=tree), run))
        kept[tree] = run.buffer.lengths - 2
    assert (kept[True] >= kept[False]).all()
    assert (kept[True] > kept[False]).any()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    beams=st.integers(1, 4),
    length=st.integers(1, 5),
    tree=st.booleans(),
    filtered=st.booleans(),
    budget=st.integers(1, 12),
    ends=st.sets(st.integers(0, 10), max_size=4),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 99),
)
def test_batches_ends_and_budgets(beams, length, tree, filtered, budget, ends, temperature, seed):
    ids, mask = padded([[3, 1, 4], [1], [5, 9]])
    decoder = MTAD([near, target], beams, length, 0.3, tree, filtered)
    options = {"max_new_tokens": budget, "eos_token_id": sorted(ends), "sampling": Sampling(temperature)}
    batch = generate(decoder, ids, mask, seed=seed, **options)
    for row, prompt in enumerate(mask.sum(1).tolist()):
        one = generate(decoder, ids[row : row + 1, 3 - prompt :], seed=seed + row, **options)
        new, answer = int(one.lengths), one.sequences[0, prompt:].tolist()
        assert batch.sequences[row, 3 : 3 + new].tolist() == answer
        assert batch.writers[row, :new].tolist() == one.writers[0].tolist()
        assert new == batch.lengths[row] <= budget
        assert not set(answer[:-1]) & ends
        assert new == budget or answer[-1] in ends


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.8, top_k=4)], ids=str)
def test_beams_are_drawn_without_replacement(sampling):
    """Two beams of one token: the likelier of two different tokens, drawn one after the other, follows the text."""
    draft, large = PAIRS["llama"]
    prompt, draws = torch.tensor([[3, 1]]), 6000
    with torch.no_grad():
        q = warped(draft.model(prompt).logits[:, -1], sampling)[0]
    both = q[:, None] * q / (1 - q[:, None]) * (1 - torch.eye(6))
    truth = ((both + both.T) * (q[:, None] > q)).sum(1)
    result = generate(
        MTAD([draft, large], beams=2, length=1, tau=0.0),
        prompt.expand(draws, -1),
        max_new_tokens=2,
        eos_token_id=(),
        sampling=sampling,
        seed=3,
    )
    found = torch.bincount(result.sequences[:, 2], minlength=6)
    assert (found[truth == 0] == 0).all()
    statistic = ((found - truth * draws).square() / (truth * draws))[truth > 0].sum()
    assert torch.special.gammaincc(((truth > 0).sum() - 1).double() / 2, statistic / 2) > 0.001


def test_learned_positions_end_where_the_context_does():
    """No node of a row whose budget fills the context stands beyond it, though others have room for more levels."""
    large = tiny("gpt2", layers=1, seed=1, max_position_embeddings=12)
    decoder = MTAD([nudged(large, 0.1), large], beams=3, length=5, tree=True)
    ids = torch.arange(48).view(16, 3) % 37
    for sampling in (Sampling(), Sampling(1.0)):
        result = generate(decoder, ids, max_new_tokens=9, eos_token_id=(), sampling=sampling, seed=1)
        assert result.lengths.tolist() == [9] * 16


def test_what_is_refused():
    for options in ({"beams": 0}, {"length": 0}, {"tau": -0.1}, {"tau": float("nan")}):
        with pytest.raises(ValueError, match="at least"):
            MTAD([near, target], **options)
    for models in ([near], [near, near, target], [PromptLookup(2), target]):
        with pytest.raises(ValueError, match="draft, target"):
            MTAD(models)
    for kind in ("bloom", "falcon-alibi"):
        alibi, rotary = tiny(kind, layers=1), tiny("llama", layers=1)
        for models, tree in (([alibi, rotary], False), ([alibi, rotary], True), ([rotary, alibi], True)):
            with pytest.raises(ValueError, match=r"ALiBi.*beams=1"):
                MTAD(models, tree=tree)
        for decoder in (MTAD([rotary, alibi], filtered=True), MTAD([alibi, alibi], beams=1, tree=True, filtered=True)):
            ids, mask = padded([[3, 1, 4, 1, 5], [9, 2]])
            written = generate(decoder, ids, mask, max_new_tokens=9, eos_token_id=())
            expected = generate(Autoregressive(alibi), ids, mask, max_new_tokens=9, eos_token_id=())
            assert torch.equal(written.sequences, expected.sequences)
