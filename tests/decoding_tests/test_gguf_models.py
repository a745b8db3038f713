"""A GGUF file says what transformers' own reading of it says, for every architecture that both read."""

import pytest
import torch
import transformers
from tiny_gguf import write_gguf
from tiny_models import mostly_slow

from decoding import LM, Autoregressive, generate
from decoding.kernels.integer_products import available

KINDS = {
    **{kind: {} for kind in ("llama", "qwen2", "gemma2", "gemma3", "stablelm")},
    "qwen3": {"head_dim": 128},
    "phi3": {"vocab_size": 32064},
    "gpt2": {"vocab_size": 50257, "n_inner": 128, "max_position_embeddings": 1024, "tie_word_embeddings": True},
    "bloom": {"tie_word_embeddings": True},
    "falcon": {"ffn_hidden_size": 128, "tie_word_embeddings": True},
    "starcoder2": {"vocab_size": 49152},
    "qwen2_moe": {"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632},
    "qwen3_moe": {"moe_intermediate_size": 768},
}
"""Tiny models, with the sizes that transformers does not read from a file but takes from its defaults. Mistral's files
are of the architecture llama."""
needs_kernel = pytest.mark.skipif(not available(), reason="needs an x86 processor with AVX2 and torch on OpenMP")
MIXED = ("Q4_0", "Q8_0", "F16", "Q5_0", "Q4_1", "F32")
IDS = torch.randint(3, 37, (1, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def tokenizer(monkeypatch):
    monkeypatch.setattr("decoding.models.loading.read_tokenizer", lambda *_: None)


def logits(lm):
    """As decoding asks for them, with the fused forward where there is one."""
    session = lm.session(1, IDS.shape[1])
    return session.catch_up(IDS, torch.tensor([IDS.shape[1]]), torch.tensor([0]), logits_to_keep=8)[0]


@torch.no_grad()
@pytest.mark.parametrize("kind", mostly_slow(KINDS, ("llama", "qwen2", "gemma2", "bloom", "qwen3_moe")))
def test_logits_and_texts_are_transformers(kind, tmp_path):
    write_gguf(tmp_path / "a.gguf", kind, MIXED, **KINDS[kind])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    theirs.generation_config.eos_token_id = None
    lm = LM.load(tmp_path / "a.gguf", dtype="float32")
    expected = theirs.eval()(IDS).logits
    torch.testing.assert_close(lm.read(IDS, 24), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(lm).view(8, -1), expected[0, -8:], rtol=1e-4, atol=1e-4)
    text = generate(Autoregressive(lm), IDS, max_new_tokens=16, eos_token_id=()).sequences
    assert torch.equal(text, theirs.generate(IDS, max_new_tokens=16, do_sample=False, pad_token_id=0))


@needs_kernel
@pytest.mark.parametrize("kind", mostly_slow(KINDS))
def test_integers_say_nearly_the_same(kind, tmp_path):
    write_gguf(tmp_path / "a.gguf", kind, MIXED, initializer_range=0.1, **KINDS[kind])  # wider ones magnify errors
    expected = logits(LM.load(tmp_path / "a.gguf", dtype="float32"))
    for dtype, error in (("int8", 0.1), ("file", 0.1), ("int4", 0.6)):
        found = logits(LM.load(tmp_path / "a.gguf", dtype=dtype))
        most = min(0.9, 3 * error) if "moe" in kind else error  # another expert may be chosen
        assert (found - expected).norm() < most * expected.norm(), dtype


def test_a_head_of_its_own_beside_a_config_that_ties_it(tmp_path):
    """transformers' reading ties every Bloom and Falcon; the embedding was overwritten with the head."""
    write_gguf(tmp_path / "a.gguf", "bloom", tie_word_embeddings=False)
    model = LM.load(tmp_path / "a.gguf").model
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    assert torch.equal(model(IDS).logits, theirs.eval()(IDS).logits)
