"""What a token costs besides the forwards. Bounds are a tenth above what was counted when they were written."""

import warnings

import numpy as np
import pytest
import torch
from operation_counts import Operations, counted
from tiny_models import nudged, tiny

from decoding import Autoregressive, Backoff, Sampling, Speculative
from policies import Logistic, Rule

pytestmark = pytest.mark.sampled

large = tiny("llama", layers=2, seed=1)
small = nudged(large)
cut = Rule("entropy", 2.4)
IDS = torch.randint(3, 37, (4, 9), generator=torch.Generator().manual_seed(1))
OPTIONS = {"max_new_tokens": 40, "eos_token_id": (), "seed": 1}


@pytest.fixture(autouse=True)
def steps(monkeypatch):
    """Decisions as devices take them that have no compiled call: theirs are the operations that count."""
    monkeypatch.setattr("policies.features.fast_path.kernels", lambda: None)


def learned():
    table = np.random.default_rng(0).normal(2.4, 1, (400, 2))
    return Logistic(("entropy", "agreed")).fit(table, table[:, 0] > 2.4)


@pytest.mark.parametrize(
    ("decoder", "most"),
    [
        (Autoregressive(large), 55),
        (Speculative([small, large], 1), 125),
        (Speculative([small, large], 2), 145),
        (Speculative([small, large], 4), 185),
        (Speculative([small, large], 4, stop=learned()), 265),
        (Backoff([small, large], learned()), 115),
        (Backoff([small, large], cut), 110),
    ],
    ids=["autoregressive", "1", "2", "4", "stop", "backoff-logistic", "backoff-rule"],
)
def test_operations_of_a_round(decoder, most, monkeypatch):
    found = counted(monkeypatch, decoder, IDS[:1], **OPTIONS)
    assert 0 < found.operations / found.rounds <= most


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0)], ids=["greedy", "sampling"])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("length", [None, 1, 4])
def test_the_host_reads_once_a_round(length, rows, sampling, monkeypatch):
    """Longer where rows end (one round each, and up to ``length`` before it), or some of several kept a whole draft."""
    decoder = Autoregressive(large) if length is None else Speculative([small, large], length)
    found = counted(monkeypatch, decoder, IDS[:rows], sampling=sampling, **OPTIONS)
    ends = rows * (1 if length is None else 4 + 2 * length)
    ragged = found.rounds if rows > 1 and length is not None else 0
    assert found.rounds <= found.reads <= found.rounds + ends + ragged


def test_a_stop_is_read_once_a_drafted_token(monkeypatch):
    found = counted(monkeypatch, Speculative([small, large], 4, stop=cut), IDS[:1], **OPTIONS)
    calls = found.result.counts["calls"][0]
    assert found.reads <= calls + found.rounds + 10


def test_greedy_makes_no_noise(monkeypatch):
    """A policy that reads noise still gets it."""
    made = []
    monkeypatch.setattr(
        "decoding.state.token_buffer.counter_noise", lambda seeds, *_: made.append(1) or torch.zeros(len(seeds))
    )
    for decoder in (Autoregressive(large), Speculative([small, large], stop=cut), Backoff([small, large], cut)):
        counted(monkeypatch, decoder, IDS[:1], **OPTIONS)
    assert not made
    counted(monkeypatch, Backoff([small, large], lambda step: step.uniform > 0), IDS[:1], **OPTIONS)
    assert made


def test_every_way_to_read_a_value_is_seen():
    values = torch.tensor([1, 0])
    for read in (
        lambda: bool(values[0]),
        lambda: int(values.sum()),
        lambda: values.nonzero(),
        lambda: values[values > 0],
    ):
        with Operations() as operations:
            read()
        assert operations.reads == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, where a read is a wait")
def test_cuda_waits_for_nothing_else(monkeypatch):
    """Of two lengths, so that what is read before and after all rounds cancels out."""
    decoder = Speculative([type(lm)(nudged(lm, 0).model.cuda()) for lm in (small, large)], 4)
    reads, waits = [], []
    for new in (20, 40):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = counted(monkeypatch, decoder, IDS[:1].cuda(), **OPTIONS | {"max_new_tokens": new})
        finally:
            torch.cuda.set_sync_debug_mode("default")
        reads.append(found.reads)
        waits.append(sum("synchronizing CUDA operation" in str(warning.message) for warning in caught))
    assert waits[1] - waits[0] <= reads[1] - reads[0]
