"""The fused forward equals the model's own: every family, every way to read, every decoder, and new weights."""

import pytest
import torch
from tiny_models import eager, greedy, mostly_slow, nudged, tiny

from decoding import MTAD, Autoregressive, Backoff, Sampling, SpecInfer, Speculative, generate
from decoding.kernels.fused_forward import FusedForward
from decoding.kernels.integer_products import available
from decoding.kernels.layer_operations import TorchOperations
from decoding.kernels.packed_products import pack
from decoding.kernels.quantized import quantise
from policies import Rule

pytestmark = pytest.mark.sampled

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 1e4,
}
PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.2, 1.4, 1.6], "long_factor": [9.0] * 4, "factor": 4.0}
LONG |= {"rope_theta": 1e4, "original_max_position_embeddings": 64}
SHAPES = {
    "plain": ("llama", {}),
    "no groups": ("llama", {"num_key_value_heads": 4}),
    "one group": ("llama", {"num_key_value_heads": 1}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "wide heads": ("llama", {"head_dim": 16}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "yarn": ("llama", {"rope_parameters": YARN}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen2, windows": ("qwen2-window", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "mistral": ("mistral", {}),
    "mistral, window": ("mistral-window", {}),
    "phi3": ("phi3", {}),
    "phi3, window": ("phi3-window", {}),
    "phi3, partial": ("phi3", {"rope_parameters": PARTIAL}),
    "phi3, longrope": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 64}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 5}),
    "gemma3": ("gemma3", {"query_pre_attn_scalar": 5}),
    "smollm3": ("smollm3", {}),
    "olmo2": ("olmo2", {}),
    "granite": ("granite", {"embedding_multiplier": 1.7, "residual_multiplier": 0.6}),
}
KINDS = ("llama", "qwen2-window", "qwen3", "phi3-window", "gemma2", "gemma3", "smollm3", "olmo2", "granite")


def fused(kind: str = "llama", layers: int = 2, seed: int = 1, **changes):
    """A tiny model whose sessions use the fused forward; biases and norms differ from their initial values."""
    lm = tiny(kind, layers=layers, seed=seed, **changes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in lm.model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                weight += 0.3 * torch.randn(weight.shape, generator=generator)
    pack(lm.model)
    assert lm.fused_forward() is not None
    return lm


@torch.no_grad()
@pytest.mark.parametrize(("kind", "shape"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("few", [0, 4, 16])
def test_it_is_the_models_own_forward(kind, shape, few, monkeypatch):
    """One row and several, one token and several, before and beyond windows of 8; ``few``: 0 is without compiled code,
    else the tokens up to which attention is compiled."""
    monkeypatch.setattr("decoding.kernels.layer_operations.FEW", few)
    if few == 0:
        monkeypatch.setattr("decoding.kernels.fused_forward.openmp", lambda: None)
    lm = fused(kind, 3, **shape)
    assert (lm.fused_forward().operations is TorchOperations) == (few == 0)
    reference = eager(lm)
    ids = torch.randint(3, 37, (3, 24), generator=torch.Generator().manual_seed(2))
    session = lm.session(3, 24)
    assert session.fused is not None
    for rows, lengths, keep in (([0, 1, 2], [5, 1, 9], 2), ([1], [2], 1), ([0, 2], [9, 24], 4), ([0, 1], [10, 12], 1)):
        logits, states = session.catch_up(ids, torch.tensor(lengths), torch.tensor(rows), keep, hidden=True)
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            fresh = reference(ids[row : row + 1, :length], output_hidden_states=True)
            n = min(keep, length)
            for mine, theirs in ((logits[i], fresh.logits[0]), (states[i], fresh.hidden_states[-1][0])):
                assert (mine[-n:] - theirs[-n:]).abs().max() <= 1e-5 * theirs.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_is_the_models_own_token_by_token(kind):
    """Without a mask until a window hides the first token."""
    lm = fused(kind, 3)
    ids = torch.randint(3, 37, (1, 20), generator=torch.Generator().manual_seed(2))
    session, expected = lm.session(1, 20), eager(lm)(ids).logits[0]
    for length in range(1, 21):
        found = session.catch_up(ids, torch.tensor([length]), torch.tensor([0]))[0, 0]
        assert (found - expected[length - 1]).abs().max() <= 1e-5 * expected.abs().max(), length


@pytest.mark.parametrize("kind", mostly_slow(KINDS[1:], ("qwen3", "phi3-window", "gemma2")))
def test_greedy_text_is_transformers(kind, prompts):
    """Ragged rows, and 20 tokens beyond windows of 8; alone, by drafts and by trees."""
    large = fused(kind)
    small, expected = nudged(large), greedy(large, *prompts, 20)
    assert small.fused_forward() is not None
    for decoder in (
        Autoregressive(large),
        Speculative([small, large], 4),
        MTAD([small, large], beams=3, length=3, tree=True, filtered=True),
        SpecInfer([small, large], (3, 2)),
    ):
        found = generate(decoder, *prompts, max_new_tokens=20, eos_token_id=(), pad_token_id=0, seed=3).sequences
        assert torch.equal(found, expected), type(decoder).__name__


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, top_k=9)], ids=["greedy", "sampling"])
def test_every_decoder_writes_the_same_text(sampling, prompts):
    ids, mask = prompts
    large = fused()
    plain = nudged(large, 0.0)  # a copy: packed too
    plain.fused_forward = lambda: None
    small = fused(layers=1, seed=3)
    rule = Rule("entropy", 2.4)
    kinds = {
        "autoregressive": lambda big: Autoregressive(big),
        "backoff": lambda big: Backoff([small, big], rule),
        "speculative": lambda big: Speculative([small, big], length=3),
        "mmtad": lambda big: MTAD([small, big], beams=3, tree=True),
        "specinfer": lambda big: SpecInfer([small, big], (3, 2)),
    }
    for name, kind in kinds.items():
        mine, theirs = (
            generate(kind(lm), ids, mask, max_new_tokens=16, eos_token_id=(), seed=3, sampling=sampling)
            for lm in (large, plain)
        )
        assert torch.equal(mine.sequences, theirs.sequences), name
        assert mine.counts == theirs.counts, name


def test_a_row_that_goes_on_alone_does_not_see_beyond_its_end(prompts):
    """Its draft is read with the reach of the longest row, whose slots it has never written."""
    large = fused()
    decoder = Speculative([nudged(large), large], 5, stop=Rule("entropy", 2.4))
    ids, mask = prompts
    written = generate(decoder, ids, mask, max_new_tokens=15, eos_token_id=5, pad_token_id=0, seed=1)
    alone = [
        generate(decoder, row[there == 1][None], max_new_tokens=15, eos_token_id=5, pad_token_id=0, seed=1)
        for row, there in zip(ids, mask, strict=True)
    ]
    assert sum(one.counts["drafted"] for one in alone) == written.counts["drafted"]
    for row, one in enumerate(alone):
        n = int(one.lengths[0])
        assert written.sequences[row, ids.shape[1] :][:n].tolist() == one.sequences[0, -n:].tolist()


def test_what_is_one_product_is_in_memory_once():
    """Where it is not packed, as on CUDA; the model's own forward still reads it."""
    lm = tiny()
    ids = torch.randint(3, 37, (1, 9), generator=torch.Generator().manual_seed(2))
    session = lm.session(1, 9)
    with torch.no_grad():
        before = eager(lm)(ids).logits
        session.fused = FusedForward(lm.model)
        found = session.catch_up(ids, torch.tensor([9]), torch.tensor([0]), logits_to_keep=9)
        for layer in lm.model.model.layers:
            gate, up = layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight
            assert gate.untyped_storage().data_ptr() == up.untyped_storage().data_ptr()
        torch.testing.assert_close(found, before, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(lm.model(ids).logits, before, atol=2e-4, rtol=1e-4)
    assert not session.fused.stale


def test_broken_weights_are_noticed():
    """NaN in one key spreads to what attends to it, compiled or not."""
    lm = fused()
    session = lm.session(1, 9)
    ids = torch.randint(3, 37, (1, 9), generator=torch.Generator().manual_seed(2))
    session.catch_up(ids, torch.tensor([8]), torch.tensor([0]))
    session.cache.layers[0].keys[0, 3] = float("nan")
    session.catch_up(ids, torch.tensor([9]), torch.tensor([0]))
    with pytest.raises(FloatingPointError, match="NaN"):
        session.check()


@pytest.mark.skipif(not available(), reason="needs an x86 processor with AVX2 and torch on OpenMP")
@pytest.mark.parametrize("kind", mostly_slow(KINDS))
@torch.no_grad()
def test_quantised_weights(kind):
    """8 bits, the embedding too. Sums in another order may round an activation to the other neighbour of its 8 bits."""
    lm = tiny(kind, layers=3, hidden_size=64, intermediate_size=64, head_dim=16)
    quantise(lm.model, 8)
    ids = torch.randint(3, 37, (1, 20), generator=torch.Generator().manual_seed(2))
    expected = lm.model(ids).logits
    assert lm.fused_forward() is not None
    found = lm.session(1, 20).catch_up(ids, torch.tensor([20]), torch.tensor([0]), logits_to_keep=20)
    assert (found - expected).abs().mean() <= 0.01 * expected.abs().max()
    small = nudged(fused(kind), 0.0)
    texts = [
        generate(decoder, ids, max_new_tokens=16, eos_token_id=()).sequences
        for decoder in (Autoregressive(lm), Speculative([small, lm], 3))
    ]
    assert torch.equal(*texts)


def test_new_weights_are_seen():
    lm = fused()
    before = lm.fused_forward()
    assert lm.fused_forward() is before
    with torch.no_grad():
        lm.model.model.layers[0].self_attn.q_proj.weight.mul_(1.5)
    assert lm.fused_forward() is not before


def test_what_it_does_not_fit_keeps_its_own_forward():
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    others = [tiny("cohere"), tiny("llama", rope_parameters=dynamic), tiny("llama", hidden_act="gelu")]
    for lm in others:
        pack(lm.model)
    unpacked = tiny("llama")
    assert [lm.fused_forward() for lm in (*others, unpacked)] == [None] * 4


def test_bfloat16_is_near_float32():
    wide, narrow = fused(), fused()
    narrow.model.bfloat16()
    ids = torch.randint(3, 37, (1, 12), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        first, second = (
            lm.session(1, 12).catch_up(ids, torch.tensor([12]), torch.tensor([0]), logits_to_keep=12)
            for lm in (wide, narrow)
        )
    assert second.dtype == torch.bfloat16
    assert (first - second).abs().mean() < 0.03 * first.abs().mean()
