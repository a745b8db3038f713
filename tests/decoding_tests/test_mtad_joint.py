"""What MTAD approximates: the likeliest block of the target, nearer with more beams and a higher threshold."""

from itertools import pairwise, product

import pytest
import torch
from tiny_models import nudged, tiny

from decoding import MTAD, MTJD, generate

VOCAB, NEW, MODELS = 6, 5, 8
PROMPTS = torch.tensor(list(product(range(VOCAB), repeat=2)))
SMALL = {"layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
TARGETS = [tiny("llama", seed=seed, vocab_size=VOCAB, initializer_range=0.5, **SMALL) for seed in range(MODELS)]
DRAFTS = [nudged(lm, 0.2, seed) for seed, lm in enumerate(TARGETS)]


@torch.no_grad()
def written(decoder):
    """Mean log-probability, by the target, of the greedy answers to all prompts."""
    texts = generate(decoder, PROMPTS, max_new_tokens=NEW, eos_token_id=()).sequences
    logp = decoder.models[-1].model(texts).logits[:, 1:-1].log_softmax(-1)
    return float(logp.gather(2, texts[:, 2:, None]).sum(1).mean())


@pytest.fixture(scope="module")
def gap():
    """gap(**options): how much likelier, in nats, MTJD's answers are than MTAD's, on average over models and texts."""
    best = [written(MTJD(lm, NEW)) for lm in TARGETS]

    def measure(**options):
        decoders = [MTAD(pair, length=NEW - 1, **options) for pair in zip(DRAFTS, TARGETS, strict=True)]
        gaps = [most - written(decoder) for most, decoder in zip(best, decoders, strict=True)]
        assert min(gaps) >= -1e-4  # nothing is likelier than the likeliest
        return sum(gaps) / MODELS

    return measure


def falls(gaps):
    return all(later < 0.98 * earlier for earlier, later in pairwise(gaps))


@pytest.mark.parametrize("tree", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["chain", "tree"])
def test_a_higher_threshold_comes_nearer_to_the_joint(gap, tree):
    assert falls([gap(tau=tau, tree=tree) for tau in (0.0, 0.1, 0.5)])


@pytest.mark.slow
def test_more_beams_come_nearer_to_the_joint(gap):
    assert falls([gap(beams=1, tau=0.5), gap(beams=4, tau=0.5)])
    assert falls([gap(beams=beams, tau=0.5, tree=True) for beams in (1, 2, 4, 8)])


def test_a_tree_comes_nearer_than_a_chain(gap):
    assert falls([gap(tau=0.1), gap(tau=0.1, tree=True)])
