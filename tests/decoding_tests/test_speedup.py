"""Predicted speedups by hand, one warning where drafting loses, and the command that measures and predicts."""

import logging
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import nudged, tiny, words

from decoding import LM, Autoregressive, Speculative, generate, measure_cost
from decoding.cost import cache as cost_cache
from decoding.cost import speedup
from decoding.cost.costs import ModelCosts

IDS = torch.tensor([[5, 9, 4]])
LARGE = {1: 0.1, 8: 0.1}
CHEAP, DEAR = (ModelCosts(({1: s, 8: s}, LARGE), (0.0, 0.0)) for s in (0.001, 0.09))
KNOWN = replace(CHEAP, precision=0.04)
FULL = ModelCosts(({1: 0.1, 9: 0.1}, {1: 1.0, 9: 1.0}), (0.001, 0.01), 0.5, 0.3, 0.2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "two-model-decoding" / "cost"


@pytest.fixture
def pair():
    large = tiny("llama", layers=2, seed=1)
    return nudged(large), large


def write(pair, length=2, times=6, **options):
    for seed in range(times):
        generate(Speculative(pair, length, **options), IDS, max_new_tokens=40, eos_token_id=(), seed=seed)


def test_a_speedup_by_hand():
    # Kept half the time: 1 + 1/2 + 1/4 tokens for two small forwards and one large one.
    draft = {1: 0.1, 9: 0.1}
    assert speedup.speedup(ModelCosts((draft, {1: 1.0, 9: 1.0})), 2, [0.5]) == pytest.approx(1.75 / 1.2)
    assert speedup.speedup(ModelCosts((draft, {1: 1.0, 3: 2.0})), 2, [0.5, 0.2]) == pytest.approx(1.6 / 2.2)
    assert speedup.best_length(ModelCosts(({1: 0.0001, 9: 0.0001}, LARGE)), [1.0])[0] == max(speedup.LENGTHS)
    assert speedup.best_length(DEAR, [0.5])[0] == 1


def test_what_is_done_beside_forwards_and_a_long_cache_count():
    assert speedup.token_seconds(FULL) == pytest.approx(1.5)
    assert speedup.speedup(FULL, 2, [0.5]) == pytest.approx(1.75 * 1.5 / (2 * 0.3 + 1.3))
    assert speedup.token_seconds(FULL, 228) == pytest.approx(2.5)
    assert speedup.speedup(FULL, 2, [0.5], 228) == pytest.approx(1.75 * 2.5 / (2 * 0.4 + 2.3))


@given(st.floats(0.01, 0.99), st.integers(1, 8))
def test_the_rate_is_the_one_that_keeps_as_many(rate, length):
    kept = sum(rate**place for place in range(1, length + 1))
    assert speedup.acceptance_from_mean(kept, length) == pytest.approx(rate, abs=1e-6)


def test_a_pair_that_loses_is_warned_of_once(pair, cache, caplog):
    cost_cache.store(pair, DEAR)
    write(pair, times=1)
    assert not caplog.records  # too few rounds
    write(pair)
    write(pair, length=3)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    sentence = record.getMessage()
    assert "drafting 2 tokens with " in sentence
    assert "x of " in sentence and "no draft length wins" in sentence


def test_a_better_length_is_named(pair, caplog):
    cost_cache.store(pair, ModelCosts(({1: 0.02, 40: 0.02}, {1: 0.1, 2: 0.1, 3: 0.4, 40: 8.0})))
    write(pair)
    assert "; drafting 1 would be 1." in caplog.text


@pytest.mark.parametrize(
    "case",
    ["wins", "stop", *(pytest.param(c, marks=pytest.mark.slow) for c in ("unknown", "other models", "batch", "alone"))],
)
def test_nothing_is_said(case, pair, caplog):
    others = [nudged(pair[0]), pair[1]]
    if case != "unknown":
        cost_cache.store(others if case == "other models" else pair, CHEAP if case == "wins" else DEAR)
    if case == "stop":
        write(pair, stop=lambda step: step.logits.amax(-1) > 1e9)
    elif case == "batch":
        generate(Speculative(pair, 2), IDS.expand(8, -1), max_new_tokens=120, eos_token_id=())
    elif case == "alone":
        generate(Autoregressive(pair[1]), IDS, max_new_tokens=100, eos_token_id=())
    else:
        write(pair)
    assert not caplog.records


def test_the_command_measures_shows_and_stores(tmp_path, monkeypatch, capsys):
    large = tiny("llama", layers=2, seed=1)
    for lm, name in ((nudged(large), "small"), (large, "large")):
        lm.model.save_pretrained(tmp_path / name)
        words().save_pretrained(tmp_path / name)
    monkeypatch.setattr("decoding.cost.overhead.measure_costs", lambda models: KNOWN)
    arguments = ["--small", str(tmp_path / "small"), "--large", str(tmp_path / "large"), "--kept", "0.5"]
    assert measure_cost.main(arguments) == 0
    said = capsys.readouterr().out
    assert f"{17.5 / 1.02:.1f}" in said and "alone 10.0" in said
    assert "small ms      1      1\n" in said and "large ms    100    100\n" in said
    assert "medians, known within 4.0%\n" in said
    assert "50% accepted" in said and f"{1.75 / 1.02:.2f}" in said
    assert all(len(line) <= 80 for line in said.splitlines() if not line.startswith("stored in"))
    assert cost_cache.stored([LM.load(tmp_path / name) for name in ("small", "large")]) == KNOWN


def test_what_was_measured_is_shown_where_it_cannot_be_stored(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way of a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(measure_cost, "load", lambda options: (lm := tiny(seed=1)) and [nudged(lm), lm])
    monkeypatch.setattr("decoding.cost.overhead.measure_costs", lambda models: KNOWN)
    assert measure_cost.main([]) == 0
    said, wrong = capsys.readouterr()
    assert "large ms    100    100\n" in said and not wrong
    (line,) = [line for line in said.splitlines() if line.startswith("not stored")]
    assert str(tmp_path / "file") in line


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--threads", "0"], "--threads must be at least 1, not 0"),
        (["--device", "cuda:77"], "no device 'cuda:77' here"),
        (["--small", "/nowhere"], "no small model at /nowhere"),
        (["--kept", "0.5", "1.5"], "--kept takes rates from 0 to 1, not 0.5 1.5"),
        (["--context", "0"], "--context must be at least 1, not 0"),
    ],
)
def test_wrong_input_is_one_sentence(arguments, sentence, cache, capsys):
    assert measure_cost.main(arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not cache.exists()


@pytest.mark.slow
def test_backoff_loads_no_drafting():
    """The warning asks a decoder for its draft length, so it imports none."""
    code = """
import sys
import decoding.decoders.backoff, decoding.generation
modules = ("drafting.draft_model", "acceptance.draft_block", "acceptance.lossless", "decoders.speculative")
assert not {f"decoding.{name}" for name in modules} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
