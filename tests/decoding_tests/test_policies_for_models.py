"""A policy that cannot decide about a model's tokens, and settings that no decoder can have, are refused at once."""

import pytest
import torch
from tiny_models import nudged, tiny

from decoding import Backoff, Speculative, generate
from decoding.decoders.registry import DECODERS, build_decoder
from policies import MLP, Logistic, Rule
from policies.decoder_spec import DecoderSpec
from policies.features.verification import VERIFICATION

large = tiny(layers=2, seed=1)
small = nudged(large)
PAIR = [small, large]
IDS = torch.tensor([[3, 4, 5]])


def with_hidden(width: int) -> MLP:
    draw = torch.Generator().manual_seed(0)
    x, states = torch.randn(40, 1, generator=draw), torch.randn(40, width, generator=draw)
    return MLP(("entropy",), hidden=(4,), use_hidden=True, epochs=1).fit(x, (x[:, 0] > 0).float(), hidden=states)


def with_classes(tokens: int) -> Rule:
    return Rule("last_is_digit", 0.5, classes=torch.zeros(tokens, dtype=torch.uint8))


def refused(match: str, policy) -> None:
    for build in (lambda: Backoff(PAIR, policy), lambda: Speculative(PAIR, stop=policy)):
        with pytest.raises(ValueError, match=match) as caught:
            build()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", VERIFICATION)
def test_what_reads_the_target_cannot_decide_before_it_has_read(name):
    """It ended in "features of both models are for drafted tokens", after the models had been loaded and had read."""
    refused("what the large model says of drafted tokens, so it can only accept drafts; tune one", Rule(name, 0.5))


def test_a_logistic_of_which_one_feature_reads_the_target_is_refused():
    policy = Logistic(("entropy", next(iter(VERIFICATION))))
    refused("it can only accept drafts", policy)


@pytest.mark.parametrize("width", [1, 31, 33, 64])
def test_hidden_states_of_another_width_are_refused(width):
    refused(f"hidden states of width {width}, and those of .* have 32; tune one", with_hidden(width))


@pytest.mark.parametrize("tokens", [1, 5, 36])
def test_a_table_of_fewer_tokens_is_refused(tokens):
    refused(f"table of token classes has {tokens} tokens, and .* has 37; tune one", with_classes(tokens))


@pytest.mark.parametrize("policy", [with_hidden(32), with_classes(37), with_classes(64)], ids=["32", "37", "64"])
def test_what_fits_is_taken(policy):
    for decoder in (Backoff(PAIR, policy), Speculative(PAIR, stop=policy)):
        assert generate(decoder, IDS, max_new_tokens=8, eos_token_id=()).lengths.tolist() == [8]


WRONG = [
    ("speculative", {"length": 10**18}, "length must be at most 1024"),
    ("specinfer", {"beams": 10**6}, "beams must be at most 1024"),
    ("mtad", {"beams": 10**6}, "beams must be at most 1024"),
    *(("mtad", {"tau": tau}, "tau must be") for tau in ("0.5", None, [0.5], True, -1, float("nan"))),
    *(("speculative", {"length": length}, "length must be") for length in ("4", None, 4.0, True, 0, [4])),
    ("speculative", {"accept": "Exact"}, "accept must be of type dict"),
]


@pytest.mark.parametrize(("name", "settings", "match"), WRONG, ids=str)
def test_settings_of_an_artifact_are_checked(name, settings, match):
    with pytest.raises(ValueError, match=match):
        build_decoder(PAIR, None, DecoderSpec(name, settings))
    with pytest.raises(ValueError, match=match):
        DECODERS[name].checked(settings)  # as the command line does before it loads a model
