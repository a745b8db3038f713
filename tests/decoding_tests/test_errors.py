"""What cannot be served is refused by name, before any model has worked; broken weights stop at once."""

import copy
import math
from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
from tiny_models import build, greedy, nudged, tiny, words
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import BambaConfig, GptOssConfig, MambaConfig, PreTrainedTokenizerFast, T5Config

from decoding import LM, Autoregressive, Backoff, Sampling, Speculative, generate
from decoding.models.settings import REFUSED, REFUSED_DRAWING
from policies import Rule

large = tiny(layers=2, seed=1)
small = nudged(large)
never = Rule.never()
IDS = torch.tensor([[3, 4, 5], [6, 7, 8]])


@pytest.fixture
def refuses():
    """refuses(match, decoder, ids, ...): generate raises this ValueError and no model has been called."""

    def check(match, decoder, ids=IDS, mask=None, **options):
        calls = []
        hooks = [lm.model.register_forward_pre_hook(lambda *_: calls.append(1)) for lm in decoder.models]
        with pytest.raises(ValueError, match=match):
            generate(decoder, ids, mask, **options)
        for hook in hooks:
            hook.remove()
        assert not calls

    return check


@pytest.mark.parametrize(
    "ids",
    [IDS[0], IDS[None], IDS.int(), IDS.float(), IDS[:0], IDS[:, :0], IDS.tolist(), IDS.numpy(), {"input_ids": IDS}],
    ids=["1-d", "3-d", "int32", "float", "no rows", "no columns", "list", "array", "encoding"],
)
def test_input_ids(refuses, ids):
    refuses(r"input_ids must be a LongTensor \[batch, length\]", Autoregressive(large), ids)


@pytest.mark.parametrize("token", [37, -1])
def test_ids_outside_the_vocabulary(refuses, token):
    refuses(rf"token ids in \[0, 37\), not {token}$", Autoregressive(large), torch.tensor([[3, token, 4]]))


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        ([[1, 1, 1], [1, 1, 0]], "left-padded"),
        ([[1, 1, 1], [1, 0, 1]], "left-padded"),
        ([[1, 1, 1], [0, 0, 0]], "left-padded"),
        ([[1, 1, 1]], r"\[1, 3\].*\[2, 3\]"),
        ([[0, 1, 2], [1, 1, 1]], "must be 0 before a prompt and 1 in it; it holds 2$"),
        ([[-1, 1, 1], [1, 1, 1]], "it holds -1$"),
        ([[0.5, 1, 1], [1, 1, 1]], "it holds 0.5$"),
        ([[math.nan, 1, 1], [1, 1, 1]], "it holds nan$"),
        ([[-math.inf, 0, 0], [0, 0, 0]], "it holds -inf$"),
    ],
    ids=["right-padded", "hole", "empty row", "shape", "two", "negative", "half", "nan", "additive"],
)
def test_attention_mask(refuses, mask, match):
    refuses(match, Autoregressive(large), IDS, torch.tensor(mask))


def test_an_attention_mask_that_is_no_tensor(refuses):
    refuses("attention_mask must be a tensor .*, not list", Autoregressive(large), IDS, [[1, 1, 1], [1, 1, 1]])


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int8])
def test_an_attention_mask_of_another_type_means_the_same(dtype):
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    own, other = (generate(Autoregressive(large), IDS, m, max_new_tokens=8) for m in (mask, mask.to(dtype)))
    assert torch.equal(own.sequences, other.sequences)


@pytest.mark.parametrize("budget", [0, -3])
def test_a_budget_of_nothing(refuses, budget):
    refuses(f"max_new_tokens must be at least 1, not {budget}", Autoregressive(large), max_new_tokens=budget)


@pytest.mark.parametrize("which", [0, 1])
def test_the_context_of_every_model(refuses, which):
    models = [small, large]
    models[which] = tiny(max_position_embeddings=20)
    refuses(r"prompt \(3 tokens\) and max_new_tokens \(18\) need 21.* 20$", Backoff(models, never), max_new_tokens=18)


@pytest.mark.parametrize("order", permutations([30, 20, 25]), ids=str)
def test_the_smallest_context_is_named(refuses, order):
    models = [tiny(max_position_embeddings=n) for n in order]
    for lm in models:
        lm.model.config.name_or_path = f"of-{lm.context}"
    three = Backoff(models, [never, never])
    refuses(r"need 43 positions, but of-20 has 20$", three, max_new_tokens=40)
    result = generate(three, IDS, max_new_tokens=17, eos_token_id=())
    assert result.lengths.tolist() == [17, 17]


def with_setting(which, name, value):
    models = [small, large]
    models[which] = nudged(large, 0.0)
    setattr(models[which].model.generation_config, name, value)
    return Speculative(models)


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_are_not_applied(refuses, name):
    """Those of the last model count: the text is its own, whoever helps to write it."""
    neutral = REFUSED[name]
    effect = [[4]] if neutral is None else neutral + 0.5
    said = rf"llama sets {name}=.*; to go on without it, add --ignore-generation-config {name} \(in Python"
    refuses(said, with_setting(1, name, effect))
    generate(with_setting(1, name, effect), IDS, max_new_tokens=1, ignore_generation_config=[name])
    generate(with_setting(0, name, effect), IDS, max_new_tokens=1)
    for nothing in (neutral, None, [], {}):
        generate(with_setting(1, name, nothing), IDS, max_new_tokens=1)


@pytest.mark.parametrize("name", REFUSED_DRAWING)
def test_settings_of_draws_matter_only_to_draws(refuses, name):
    neutral = REFUSED_DRAWING[name]
    decoder = with_setting(1, name, 0.3 if neutral is None else neutral + 0.5)
    generate(decoder, IDS, max_new_tokens=1)
    refuses(f"llama sets {name}=", decoder, sampling=Sampling(1.0))
    generate(decoder, IDS, max_new_tokens=1, sampling=Sampling(1.0), ignore_generation_config=[name])
    generate(with_setting(1, name, neutral), IDS, max_new_tokens=1, sampling=Sampling(1.0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", -1.0),
        ("repetition_penalty", "high"),
        ("repetition_penalty", float("inf")),
        ("repetition_penalty", 1e300),
        ("repetition_penalty", 10**400),
        ("no_repeat_ngram_size", 2.5),
        ("bad_words_ids", [4]),
        ("bad_words_ids", [[-4]]),
        ("sequence_bias", [[4, 1.0]]),
        ("sequence_bias", [[[], 1.0]]),
        ("sequence_bias", [[[4], float("nan")]]),
        ("sequence_bias", [[[4], 1e300]]),
        ("sequence_bias", [[[4], 10**400]]),
        ("suppress_tokens", ["w5"]),
        ("forced_eos_token_id", [2.5]),
        ("forced_eos_token_id", 10**30),
        ("min_new_tokens", "some"),
        ("min_length", 3.5),
        ("min_length", 10**30),
        ("exponential_decay_length_penalty", [3]),
        ("exponential_decay_length_penalty", 1.5),
        ("exponential_decay_length_penalty", [3, float("nan")]),
    ],
)
def test_settings_that_mean_nothing(refuses, name, value):
    refuses(rf"llama sets {name}=.*, which means nothing: \S", with_setting(1, name, value))


def test_settings_that_nothing_is_called(refuses):
    said = "no setting 'repetition_penalti' that can be left out; these can: sequence_bias, repetition_penalty"
    refuses(said, Autoregressive(large), ignore_generation_config=["repetition_penalti"])


def with_tokenizer(lm, tokenizer):
    return LM(copy.deepcopy(lm.model), tokenizer)


def test_vocabularies_without_tokenizers(refuses):
    refuses("one vocabulary size, not 41 and 37", Backoff([tiny(vocab_size=41), large], never))
    refuses("one vocabulary size, not 41 and 37", Backoff([tiny(vocab_size=41), with_tokenizer(large, words())], never))


def test_the_first_id_of_two_meanings_is_named(refuses):
    first, swapped = with_tokenizer(small, words()), with_tokenizer(large, words(swap=(20, 12)))
    refuses("id 12 is 'w12' in one and 'w20' in the other", Speculative([first, swapped]))
    refuses("id 12 is 'w12' in one and 'w20' in the other", Backoff([first, first, swapped], [never, never]))


def test_ids_with_holes_are_all_kept_and_ids_beyond_the_head_are_not():
    """The highest id counts, not how many there are: three tokens, of which the last is 30 or 99."""

    def vocabulary(last):
        core = Tokenizer(WordLevel({"a": 0, "b": 1, "c": last}, unk_token="a"))
        return LM(large.model, PreTrainedTokenizerFast(tokenizer_object=core)).vocab

    assert vocabulary(30) == 31
    assert vocabulary(99) == 37


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (T5Config(d_model=32, d_ff=48, num_layers=1, num_heads=2), "encoder-decoder"),
        (MambaConfig(hidden_size=32, num_hidden_layers=1), "cannot be rolled back"),
        (BambaConfig(num_hidden_layers=1), "cannot be rolled back"),
        (GptOssConfig(hidden_size=32, num_hidden_layers=1), "has not been tested"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_architectures_by_name(config, reason):
    model = SimpleNamespace(config=config)
    with pytest.raises(ValueError, match=f"'{config.model_type}' is not supported: .*{reason}.*; the exact .*llama"):
        LM(model)


def test_a_falcon_that_adds_alibi_twice():
    """As transformers' eager attention does; Falcon keeps the attention that it was loaded with."""
    model = build("falcon-alibi", num_hidden_layers=1)
    model.config._attn_implementation = "eager"
    with pytest.raises(ValueError, match="FalconForCausalLM does not take sdpa attention; load it with"):
        LM(model)


def test_positions_at_which_longrope_would_turn(refuses):
    """Longrope reads short texts with other frequencies than long ones, all rows of a batch alike."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    lm = tiny("phi3", rope_parameters=rope, original_max_position_embeddings=16)
    refuses("prompt .3 tokens. and max_new_tokens .14. need 17.* 16$", Autoregressive(lm), max_new_tokens=14)
    expected = greedy(lm, IDS, torch.ones_like(IDS), 13)
    assert torch.equal(generate(Autoregressive(lm), IDS, max_new_tokens=13, eos_token_id=()).sequences, expected)


def test_decoders_check_their_parts():
    with pytest.raises(ValueError, match="not 1 models and 0 policies"):
        Backoff([large], [])
    with pytest.raises(ValueError, match="not 3 models and 1 policies"):
        Backoff([small, small, large], never)
    with pytest.raises(ValueError, match="not 3 models"):
        Speculative([small, small, large])
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Speculative([small, large], length=0)


def test_sources_and_dtypes(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder at"):
        LM.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no GGUF file at"):
        LM.load(tmp_path / "nothing.gguf")
    for dtype in ("float3", "int3"):
        with pytest.raises(ValueError, match=f"not '{dtype}'"):
            LM.load(tmp_path, dtype=dtype)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0)], ids=["greedy", "sampling"])
@pytest.mark.parametrize("which", [0, 1])
def test_broken_weights_stop_in_the_step_that_shows_them(which, sampling):
    broken = nudged(large, 0.0)
    with torch.no_grad():
        broken.model.model.layers[1].mlp.down_proj.weight[3, 3] = float("nan")
    models = [small, large]
    models[which] = broken
    pieces = []
    for decoder in (Autoregressive(broken), Speculative(models), Backoff(models, Rule.always())):
        with pytest.raises(FloatingPointError, match="llama returned NaN logits"):
            generate(decoder, IDS, sampling=sampling, stream=pieces.append)
    assert not pieces
    if which == 1:  # a model that is never asked does no harm
        generate(Backoff(models, never, verify_eos=False), IDS, max_new_tokens=3)


def test_one_broken_row_is_enough():
    broken = nudged(large, 0.0)
    with torch.no_grad():
        broken.model.model.embed_tokens.weight[7] = float("nan")
    generate(Autoregressive(broken), IDS[:1], max_new_tokens=1)
    with pytest.raises(FloatingPointError):
        generate(Autoregressive(broken), IDS, max_new_tokens=1)
