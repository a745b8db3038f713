"""The cache: reading and rolling back in any order equals a fresh forward, and no two users of a model meet."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import KINDS, eager, mostly_slow, nudged, tiny

from decoding import MTAD, Autoregressive, Backoff, Sampling, SpecInfer, Speculative, generate
from decoding.generation import commits, start
from decoding.kv_cache.session import Session
from policies import Random, Rule

pytestmark = pytest.mark.sampled

ROWS, SLOTS = 3, 16
large = tiny(layers=2, seed=4)
small = nudged(large)


@cache
def made(kind):
    """A model, and one of transformers with its weights."""
    lm = tiny(kind, layers=2, seed=4)
    return lm, eager(lm)


moves = st.lists(
    st.tuples(
        st.sets(st.integers(0, ROWS - 1), min_size=1),  # rows
        st.lists(st.integers(1, 5), min_size=ROWS, max_size=ROWS),  # how far each reads
        st.lists(st.integers(0, 4), min_size=ROWS, max_size=ROWS),  # and then rolls back
        st.integers(1, 6),  # keep
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("kind", mostly_slow(KINDS))
@given(moves=moves, seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None, derandomize=True)
@torch.no_grad()
def test_reading_and_rolling_back_is_a_fresh_forward(kind, moves, seed):
    generator = torch.Generator().manual_seed(seed)
    lm, reference = made(kind)
    session = lm.session(ROWS, SLOTS)
    ids = torch.randint(0, 37, (ROWS, SLOTS), generator=generator)
    read, spoken = [0] * ROWS, 0
    for rows, steps, back, keep in moves:
        rows = sorted(rows)
        for r in rows:  # what lies beyond the tokens read is another text by now
            ids[r, read[r] :] = torch.randint(0, 37, (SLOTS - read[r],), generator=generator)
        lengths = [min(read[r] + steps[r], SLOTS) for r in rows]
        logits, hidden = session.catch_up(ids, torch.tensor(lengths), torch.tensor(rows), keep, hidden=True)
        assert logits.shape[:2] == hidden.shape[:2] == (len(rows), keep)
        for i, (r, length) in enumerate(zip(rows, lengths, strict=True)):
            fresh = reference(ids[r : r + 1, :length], output_hidden_states=True)
            new = min(max(length - read[r], 1), keep)
            spoken += length - min(read[r], length - 1)
            torch.testing.assert_close(logits[i, -new:], fresh.logits[0, -new:], atol=2e-4, rtol=1e-4)
            torch.testing.assert_close(hidden[i, -new:], fresh.hidden_states[-1][0, -new:], atol=2e-4, rtol=1e-4)
            read[r] = max(length - back[r], 0)
        session.rollback(torch.tensor(rows), torch.tensor([read[r] for r in rows]))
    assert session.read.tolist() == read
    assert (session.calls, sum(session.reads)) == (len(moves), spoken)


def test_rolling_back_never_goes_forward():
    session = large.session(2, 8)
    rows, lengths = torch.arange(2), torch.tensor([3, 5])
    session.catch_up(torch.ones(2, 8, dtype=torch.long), lengths, rows)
    session.rollback(rows, torch.tensor([7, 4]))
    assert session.read.tolist() == [3, 4]


def test_one_model_in_two_slots(prompts):
    ids, mask = prompts
    options = {"max_new_tokens": 15, "eos_token_id": 5, "pad_token_id": 0, "seed": 1}
    policies = [Random(0.7), Random(0.5)]
    for sampling in (Sampling(), Sampling(1.0)):
        shared, apart = (
            generate(Backoff([large, small, last], policies), ids, mask, sampling=sampling, **options)
            for last in (large, nudged(large, 0))
        )
        assert torch.equal(shared.sequences, apart.sequences)
        assert torch.equal(shared.writers, apart.writers)
        assert shared.counts == apart.counts
        assert set(shared.writers.unique().tolist()) >= {0, 1, 2}


DECODERS = {
    "autoregressive": Autoregressive(large),
    "backoff": Backoff([small, large], Rule("entropy", 2.4)),
    "speculative": Speculative([small, large], stop=Rule("entropy", 2.4)),
    "mmtad": MTAD([small, large], tree=True),
    "specinfer": SpecInfer([small, large]),
}


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_suspended_streams_do_not_meet(decoder, prompts):
    ids, mask = prompts
    inputs = [(ids, mask), (ids.flip(0) * mask, mask), (ids[:1], None)]
    expected = [
        generate(decoder, a, m, max_new_tokens=12, eos_token_id=5, sampling=Sampling(1.0), seed=9) for a, m in inputs
    ]
    runs = [start(decoder, a, m, 12, 5, Sampling(1.0), 9) for a, m in inputs]
    streams = [commits(decoder, run) for run in runs]
    while streams:
        streams = [stream for stream in streams if next(stream, None) is not None]
    for run, alone, (a, _) in zip(runs, expected, inputs, strict=True):
        for row, length in enumerate(alone.lengths.tolist()):
            assert run.buffer.answer(row) == alone.sequences[row, a.shape[1] :][:length].tolist()


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_a_broken_stream_leaves_the_models_usable(decoder, prompts):
    ids, mask = prompts
    expected = generate(decoder, ids, mask, max_new_tokens=10, eos_token_id=())
    seen = []

    def breaks(piece):
        seen.append(piece)
        if len(seen) == 7:
            raise ConnectionError("the reader is gone")

    with pytest.raises(ConnectionError, match="the reader is gone"):
        generate(decoder, ids, mask, max_new_tokens=10, eos_token_id=(), stream=breaks)
    assert len(seen) == 7
    again = generate(decoder, ids, mask, max_new_tokens=10, eos_token_id=())
    assert torch.equal(again.sequences, expected.sequences)
    assert again.counts == expected.counts


APART = DECODERS | {
    "backoff-three": Backoff([tiny("llama", layers=1, seed=3), small, large], [Random(0.6), Random(0.5)]),
    "speculative-keep": Speculative([small, large], length=3, stop=Random(0.3), keep_stop_token=True),
}


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0)], ids=["greedy", "sampling"])
@pytest.mark.parametrize("decoder", APART.values(), ids=APART)
def test_rows_far_behind_are_read_apart(decoder, sampling, prompts, monkeypatch):
    """Without any padding the same is written, by more forwards that read the same tokens."""
    options = {"max_new_tokens": 15, "eos_token_id": 5, "pad_token_id": 0, "sampling": sampling, "seed": 1}
    monkeypatch.setattr("decoding.kv_cache.session.CPU_WASTE", 256)
    together = generate(decoder, *prompts, **options)
    monkeypatch.setattr("decoding.kv_cache.session.CPU_WASTE", 0)
    forward, padding = Session._forward, []
    look = lambda session, *args, **kw: padding.append(_padding(session)) or forward(session, *args, **kw)  # noqa: E731
    monkeypatch.setattr(Session, "_forward", look)
    apart = generate(decoder, *prompts, **options)
    assert torch.equal(apart.sequences, together.sequences)
    assert torch.equal(apart.writers, together.writers)
    assert apart.counts | {"calls": 0} == together.counts | {"calls": 0}
    assert sum(apart.counts["calls"]) == len(padding) > sum(together.counts["calls"])
    assert not any(padding) or isinstance(decoder, Speculative)  # which asks for more logits than a row has tokens


def _padding(session):
    return int((session.plan.slots % (session.capacity + 1) == session.capacity).sum())


def test_what_is_read_apart_comes_back_in_order(monkeypatch):
    """Logits and hidden states of a ragged forward, in any order of the rows; split only where it saves enough."""
    ids = torch.randint(0, 37, (5, 30), generator=torch.Generator().manual_seed(2))
    lengths, rows = torch.tensor([3, 30, 4, 28]), torch.tensor([2, 0, 3, 1])
    found = {}
    for waste, calls in ((0, 4), (20, 2), (51, 2), (52, 1), (256, 1)):
        monkeypatch.setattr("decoding.kv_cache.session.CPU_WASTE", waste)
        session = large.session(5, 30)
        found[waste] = session.catch_up(ids, lengths, rows, logits_to_keep=2, hidden=True)
        assert (session.calls, sum(session.reads)) == (calls, 65)
        assert session.read[rows].tolist() == lengths.tolist()
    for logits, hidden in found.values():
        torch.testing.assert_close(logits, found[256][0], atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(hidden, found[256][1], atol=2e-4, rtol=1e-4)
