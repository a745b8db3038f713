"""The work outside of forwards: told apart from them on a made-up clock, and measured on a real pair."""

import random
from types import SimpleNamespace

import pytest
from tiny_models import nudged, tiny

from decoding.cost import overhead
from decoding.cost.costs import CONTEXT, ModelCosts
from decoding.cost.timing import FEW, LENGTHS


def test_rounds_and_drafted_tokens_are_told_apart(monkeypatch):
    """0.5 a token alone, 0.3 a round and 0.2 a drafted token."""

    texts = []

    def generate(decoder, ids, max_new_tokens, **options):
        texts.append(max_new_tokens)
        length = getattr(decoder, "length", 0)
        rounds = 11 if length else 33
        beside = rounds * (0.3 + 0.2 * length if length else 0.5)
        calls = [rounds * length, rounds][not length :]
        return SimpleNamespace(seconds={"total": 7.0 + beside, "models": [3.0, 4.0]}, counts={"calls": calls})

    monkeypatch.setattr(overhead, "generate", generate)
    large = tiny(seed=1)
    models = [nudged(large), large]
    assert overhead.overheads(models, 0.01) == pytest.approx((0.5, 0.3, 0.2))
    assert texts == [overhead.LEAST] * 3 + [overhead.MOST] * 3 * FEW
    texts.clear()
    assert overhead.overheads(models, 0.25) == pytest.approx((0.5, 0.3, 0.2))
    assert texts == [overhead.LEAST] * 3 * FEW  # a large model leaves no time for more


def test_noise_is_measured_for_a_while_only(monkeypatch):
    """On a clock of our own: each text takes 1 second, and what a token costs beside its forward is anything."""
    clock, draw = SimpleNamespace(now=0.0), random.Random(0)

    def generate(decoder, ids, **options):
        clock.now += 1.0
        calls = [5, 5][not getattr(decoder, "length", 0) :]
        return SimpleNamespace(seconds={"total": draw.random(), "models": [0.0]}, counts={"calls": calls})

    monkeypatch.setattr(overhead, "generate", generate)
    monkeypatch.setattr(overhead, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    large = tiny(seed=1)
    found = overhead.overheads([nudged(large), large], 0.01)
    assert all(0 <= seconds < 1 for seconds in found)
    assert overhead.ALL <= clock.now <= overhead.ALL + 3


def test_a_longer_cache_is_what_is_between_two_measurements(monkeypatch):
    large = tiny(seed=1, max_position_embeddings=4096)

    def measure(models, lengths=LENGTHS, context=CONTEXT):
        return ModelCosts(tuple(dict.fromkeys(lengths, 1.0 + slope * context) for slope in (0.001, -0.001)))

    monkeypatch.setattr(overhead, "measure", measure)
    costs = overhead.measure_costs([nudged(large), large])
    assert costs.cached == pytest.approx((0.001, 0.0))  # a forward is never cheaper for what it has to read
    assert costs.forward(0, 1, CONTEXT + 500) == pytest.approx(1.0 + 0.001 * (CONTEXT + 500))


@pytest.mark.slow
def test_a_real_pair():
    large = tiny(seed=1)
    costs = overhead.measure_costs([nudged(large), large])
    assert [*costs.small] == [*costs.large] and 1 in costs.small
    assert all(0 < seconds < 1 for table in costs.tables for seconds in table.values())
    assert 0 < costs.token_overhead < 1 and 0 <= costs.round_overhead < 1 and 0 <= costs.draft_overhead < 1
