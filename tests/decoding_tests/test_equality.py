"""Greedy decoding: every decoder that promises one model's text writes what transformers writes with that model."""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import KINDS, ending_tokens, greedy, mostly_slow, nudged, tiny

from decoding import MTAD, Autoregressive, Backoff, Speculative, generate
from decoding.models.architectures import counts_slots
from policies import Rule

pytestmark = pytest.mark.sampled

NEW = 20
always, never = Rule.always(), Rule.never()
few = pytest.mark.parametrize("trio", mostly_slow(KINDS), indirect=True, scope="module")
"""architectures of each kind of attention and positions; the others where slow tests run"""


@pytest.fixture(scope="module", params=KINDS)
def trio(request):
    large = tiny(request.param, layers=3, seed=1)
    return [tiny(request.param, layers=1, seed=2), nudged(large), large]


@pytest.fixture
def expect(prompts):
    """expect(lm): transformers' text, and an EOS at which some of its rows end early."""
    ids, mask = prompts

    def texts(lm):
        if not hasattr(lm, "expected"):
            eos = ending_tokens(greedy(lm, ids, mask, NEW)[:, ids.shape[1] :])[0]
            lm.expected = SimpleNamespace(eos=eos, sequences=greedy(lm, ids, mask, NEW, eos))
        return lm.expected

    return texts


@pytest.fixture
def check(prompts, expect):
    """check(decoder, lm): the decoder writes the text of lm, row by row, and rows end where they should."""
    ids, mask = prompts

    def same(decoder, lm):
        expected = expect(lm)
        result = generate(decoder, ids, mask, max_new_tokens=NEW, eos_token_id=expected.eos, pad_token_id=0)
        assert torch.equal(result.sequences, expected.sequences)
        early = result.lengths < NEW
        assert early.any()
        assert len(result.lengths.unique()) > 1
        last = result.sequences.gather(1, ids.shape[1] + result.lengths[:, None] - 1).squeeze(1)
        assert (last[early] == expected.eos).all()
        return result

    return same


def test_autoregressive_is_transformers(trio, check):
    for lm in trio[1:]:
        result = check(Autoregressive(lm), lm)
        assert set(result.writers.unique().tolist()) == {0, -1}


STOPS = [
    {"length": 1},
    {"length": 4},
    {"length": 7},
    {"length": 5, "stop": Rule("entropy", 2.4)},
    {"length": 5, "stop": Rule("entropy", 2.4), "keep_stop_token": True},
    {"length": 3, "stop": always},
    {"length": 3, "stop": always, "keep_stop_token": True},
]


@pytest.mark.parametrize("options", STOPS, ids=str)
def test_speculative_is_the_target(trio, check, options):
    stranger, close, large = trio
    counts = check(Speculative([close, large], **options), large).counts
    if options.get("stop") == always:
        assert bool(counts["drafted"]) == options.get("keep_stop_token", False)
    else:
        assert 0 < counts["accepted"] <= counts["drafted"]
        assert counts["accepted"] < counts["drafted"] or "stop" in options  # which may be right about every token
    if options == {"length": 4}:
        check(Speculative([stranger, large], **options), large)


@few
@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
def test_filtered_mtad_is_the_target(trio, check, tree):
    """The filter of a greedy target leaves one token; beams where two tokens may share a position, else a chain."""
    _, close, large = trio
    beams = 1 if counts_slots(large.model.config) else 3
    counts = check(MTAD([close, large], beams, length=3, tree=tree, filtered=True), large).counts
    assert 0 < counts["accepted"] < counts["drafted"]


@few
def test_a_draft_by_the_target_itself_is_kept_whole(trio, check, prompts):
    """But for what stands behind an EOS."""
    large = trio[-1]
    decoder = Speculative([large, large])
    check(decoder, large)
    counts = generate(decoder, *prompts, max_new_tokens=NEW, eos_token_id=()).counts
    assert counts["accepted"] == counts["drafted"] > 0


@few
def test_backoff_always_is_the_large_model(trio, check):
    small, _, large = trio
    result = check(Backoff([small, large], always), large)
    assert set(result.writers.unique().tolist()) == {1, -1}


@few
def test_backoff_never_is_the_small_model(trio, check):
    small, _, large = trio
    result = check(Backoff([small, large], never, verify_eos=False), small)
    assert set(result.writers.unique().tolist()) == {0, -1}
    assert result.counts["calls"][1] == 0


@few
@pytest.mark.parametrize(
    ("policies", "writer"),
    [((always, always), 2), ((never, always), 0), ((never, never), 0), ((always, never), 1)],
    ids=["always-always", "never-always", "never-never", "always-never"],
)
def test_backoff_of_three_is_the_model_it_leads_to(trio, check, policies, writer):
    result = check(Backoff(trio, policies, verify_eos=False), trio[writer])
    assert set(result.writers.unique().tolist()) == {writer, -1}


@few
def test_an_eos_of_the_small_model_is_handed_on(trio, prompts, expect):
    small, _, large = trio
    ids, mask = prompts
    eos = expect(small).eos
    result = generate(Backoff([small, large], never), ids, mask, max_new_tokens=NEW, eos_token_id=eos)
    answers = result.sequences[:, ids.shape[1] :]
    assert (result.writers == 1).any()
    assert (result.writers[answers == eos] != 0).all()
    assert result.counts["escalated"] == [int((result.writers == 1).sum())]


@few
def test_backoff_by_turns_writes_what_each_model_would(trio, prompts):
    """Token by token: each is what its writer says after exactly the text before it, lagging caches or not."""
    ids, mask = prompts
    turns = [lambda step: step.position % 3 > 0, lambda step: step.position % 3 > 1]
    result = generate(Backoff(trio, turns), ids, mask, max_new_tokens=12, eos_token_id=())
    assert result.writers.tolist() == [[0, 1, 2] * 4] * 4
    for row, prompt in enumerate(mask.sum(1).tolist()):
        text = result.sequences[row, ids.shape[1] - prompt :]
        for new in range(12):
            said = trio[new % 3].model(text[None, : prompt + new]).logits[0, -1].argmax()
            assert said == text[prompt + new]
