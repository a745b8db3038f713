"""A draft that does not wait for its stop is the draft that does: same text, same counts but for its own calls."""

import numpy as np
import pytest
import torch
from operation_counts import counted
from tiny_models import nudged, tiny

from decoding import Block, Sampling, Speculative, generate
from decoding.drafting import draft_model
from policies import Logistic, Momentum, Random, Rule

pytestmark = pytest.mark.sampled

large = tiny("llama", layers=2, seed=1)
small = nudged(large)
IDS = torch.randint(3, 37, (3, 9), generator=torch.Generator().manual_seed(1))
NEW, LENGTH = 30, 5


def learned():
    names = ("entropy", "agreed", "mean_entropy", "repeated", "since_large")
    table = np.random.default_rng(0).normal(2.4, 1, (400, len(names)))
    return Logistic(names).fit(table, table[:, 0] > 2.4)


STOPS = {
    "rule": Rule("entropy", 2.4),
    "logistic": learned(),
    "momentum": Momentum(2.4),
    "random": Random(0.4),
    "never": Rule.never(),
    "always": Rule.always(),
}


def write(monkeypatch, ahead, stop, rows, sampling, keep, accept=None):
    monkeypatch.setattr(draft_model, "host_waits", lambda device: ahead)
    decoder = Speculative([small, large], LENGTH, stop=stop, keep_stop_token=keep, accept=accept)
    return generate(decoder, IDS[:rows], max_new_tokens=NEW, sampling=sampling, seed=3)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0)], ids=["greedy", "sampling"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_the_same_drafts(stop, keep, rows, sampling, monkeypatch):
    plain = write(monkeypatch, False, stop, rows, sampling, keep)
    ahead = write(monkeypatch, True, stop, rows, sampling, keep)
    assert ahead.sequences.equal(plain.sequences) and ahead.writers.equal(plain.writers)
    for name in ("drafted", "accepted"):
        assert ahead.counts[name] == plain.counts[name] and type(ahead.counts[name]) is int
    (extra, _), (waited, target) = ahead.counts["calls"], plain.counts["calls"]
    assert ahead.counts["calls"][1] == target
    assert extra <= waited + target * (rows + 1)


@pytest.mark.parametrize("rows", [1, 3])
def test_rules_that_look_at_a_whole_block_see_no_more_of_it(rows, monkeypatch):
    both = [write(monkeypatch, ahead, STOPS["rule"], rows, Sampling(1.0), False, Block()) for ahead in (False, True)]
    assert both[0].sequences.equal(both[1].sequences)


def test_no_wait_within_a_draft(monkeypatch):
    """Once a round for the text, and near the budget as ever."""
    monkeypatch.setattr(draft_model, "host_waits", lambda device: True)
    heard = []
    monkeypatch.setattr(
        "decoding.drafting.draft_model.AsyncFlag.__bool__", lambda self: heard.append(1) or bool(self.value.tolist())
    )
    decoder = Speculative([small, large], LENGTH, stop=STOPS["logistic"])
    found = counted(monkeypatch, decoder, IDS[:1], max_new_tokens=60, eos_token_id=())
    assert heard
    assert found.reads - len(heard) <= found.rounds + 4 * LENGTH
