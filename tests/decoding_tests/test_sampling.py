"""Probabilities are transformers' own, and noise is a known function of seed, position and stream."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from decoding import Sampling
from decoding.state.sampling import counter_noise, sample_from_weights

pytestmark = pytest.mark.sampled


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 5, 50, 100])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("min_p", [None, 0.0, 0.02, 0.4, 1.0])
def test_probabilities_are_those_of_transformers(temperature, top_k, top_p, min_p):
    logits = 3 * torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    scores = scores if top_k is None else TopKLogitsWarper(top_k)(None, scores)
    scores = scores if top_p is None else TopPLogitsWarper(top_p)(None, scores)
    scores = scores if min_p is None else MinPLogitsWarper(min_p)(None, scores)
    mine = Sampling(temperature, top_k, top_p, min_p).probabilities(logits)
    torch.testing.assert_close(mine, scores.softmax(-1), atol=1e-6, rtol=1e-5)
    assert torch.equal(mine > 0, scores > -torch.inf)


def test_the_order_is_that_of_transformers():
    """The processors that ``generate`` itself makes, on logits for which another order keeps other tokens."""
    config = GenerationConfig(do_sample=True, temperature=0.5, top_k=3, top_p=0.6, min_p=0.5, num_beams=1)
    lm = tiny()
    lm.model._prepare_special_tokens(config)
    logits = torch.tensor([[2.0, 1.7, 1.6, 1.5, 0.0]])
    warp = lm.model._get_logits_processor(config, input_ids_seq_length=1, logits_processor=LogitsProcessorList())
    mine = Sampling(0.5, 3, 0.6, 0.5).probabilities(logits)
    torch.testing.assert_close(mine, warp(torch.tensor([[1]]), logits).softmax(-1))


def test_tied_logits_pass_top_k_together():
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    mine = Sampling(1.0, top_k=2).probabilities(logits)
    assert torch.equal(mine, TopKLogitsWarper(2)(None, logits).softmax(-1))
    assert (mine[0] > 0).tolist() == [True, True, True, False]


def test_masked_logits_and_half_precision():
    logits = torch.tensor([[1.0, -torch.inf, 0.5, -torch.inf]], dtype=torch.bfloat16)
    for sampling in (Sampling(1.0), Sampling(0.7, top_k=3), Sampling(1.0, top_p=0.99)):
        mine = sampling.probabilities(logits)
        assert mine.dtype == torch.float32
        assert (mine[0] > 0).tolist() == [True, False, True, False]
        assert mine.sum() == pytest.approx(1)


def test_greedy_is_one_hot_and_draws_the_best():
    logits = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Sampling().probabilities(logits).argmax(-1), logits.argmax(-1))
    assert torch.equal(Sampling().probabilities(logits).sum(-1), torch.ones(3, 4))
    assert torch.equal(Sampling().draw(logits, torch.rand(3, 4)), logits.argmax(-1))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 1.0, "top_k": 0},
        {"temperature": 1.0, "top_k": -3},
        {"temperature": 1.0, "top_k": 2.5},
        {"temperature": 1.0, "top_k": 3.0},
        {"temperature": 1.0, "min_p": -0.1},
        {"temperature": 1.0, "min_p": 1.01},
        {"temperature": 1.0, "min_p": float("nan")},
        {"temperature": 1.0, "top_p": 0.0},
        {"temperature": 1.0, "top_p": 1.01},
        {"temperature": 1.0, "top_p": float("nan")},
    ],
    ids=str,
)
def test_bad_values_are_refused_by_name(values):
    with pytest.raises(ValueError, match=list(values)[-1]):
        Sampling(**values)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8).filter(any), st.integers(0, 2**23 - 1))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_invert_never_draws_what_has_no_weight(weights, step):
    weights = torch.tensor(weights)
    token = sample_from_weights(weights, torch.tensor(step / 2**23))
    assert weights[token] > 0
    below = weights.double()[:token].sum() / weights.double().sum()
    above = weights.double()[: token + 1].sum() / weights.double().sum()
    assert below - 1e-5 <= step / 2**23 <= above + 1e-5


def test_invert_keeps_leading_shapes():
    weights = torch.tensor([0.0, 2.0, 0.0, 2.0, 0.0]).expand(3, 2, 5)
    uniform = torch.tensor([0.0, 0.49]).expand(3, 2)
    assert sample_from_weights(weights, uniform).tolist() == [[1, 1]] * 3
    assert sample_from_weights(weights, 0.5 + uniform).tolist() == [[3, 3]] * 3


def by_hand(seed: int, position: int, stream: int) -> float:
    """splitmix64 in unsigned integers of unlimited size."""
    mask = 2**64 - 1
    x = (seed * 0x9E3779B97F4A7C15 + position * STEP + (stream + 1) * STREAM) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    x ^= x >> 31
    return (x >> 41) / 2**23


STEP, STREAM = 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31 - 1, 2**40 + 3, -5])
def test_noise_has_known_values(seed):
    positions = torch.arange(50)
    for stream in (0, 1, 5):
        mine = counter_noise(torch.full((50,), seed), positions, stream)
        assert mine.dtype == torch.float32
        assert mine.tolist() == [by_hand(seed, p, stream) for p in range(50)]


def test_noise_known_answers():
    """Written down once: a change of these numbers changes every sampled text."""
    values = (counter_noise(torch.tensor([0, 0, 1, 42]), torch.tensor([0, 1, 0, 9]), 0) * 2**23).long()
    assert values.tolist() == [5884337, 175063, 1858571, 1578134]


def test_noise_does_not_depend_on_the_batch():
    seeds, positions = torch.arange(30)[:, None] + 3, torch.arange(20)
    table = counter_noise(seeds, positions, 2)
    assert table.shape == (30, 20)
    assert counter_noise(torch.tensor([3 + 17]), torch.tensor([11]), 2) == table[17, 11]


def test_noise_is_uniform_and_its_streams_unrelated():
    seeds, positions = torch.arange(400)[:, None], torch.arange(250)
    tables = torch.stack([counter_noise(seeds, positions, stream) for stream in range(5)]).double()
    assert tables.min() >= 0
    assert tables.max() < 1
    bins = torch.histc(tables.float(), 64, 0, 1)
    expected = tables.numel() / 64
    statistic = ((bins - expected) ** 2 / expected).sum()
    assert 30 < statistic < 110  # 63 degrees of freedom
    near = [tables[:, 1:] * tables[:, :-1], tables[:, :, 1:] * tables[:, :, :-1], tables[1:] * tables[:-1]]
    for product in near:  # neighbouring rows, positions and streams: E[uv] = 1/4
        assert abs(product.mean() - 0.25) < 5 * 0.22 / product.numel() ** 0.5
