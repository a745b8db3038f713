"""Weights of 4 to 8 bits: blocks of GGUF files as the gguf package unpacks them, exact decoding, memory once."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize, quantize
from tiny_models import tiny, words

from decoding import LM, Autoregressive, Speculative, generate
from decoding.kernels.integer_products import available
from decoding.kernels.joined import joined
from decoding.kernels.packed_products import PackedLinear, pack
from decoding.kernels.quantized import IntegerEmbedding, IntegerLinear, quantise, rounded
from decoding.kv_cache.token_tree import TokenTree
from decoding.models.defaults import DRAFTER
from decoding.models.gguf_blocks import OWN, matrix

needs_kernel = pytest.mark.skipif(not available(), reason="needs an x86 processor with AVX2 and torch on OpenMP")
BLOCK_BYTES = {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210}


def blocks(kind: GGMLQuantizationType) -> np.ndarray:
    """Rows of a [48, 512] matrix; of kinds that gguf cannot write, random bits with sane scales."""
    draw = np.random.default_rng(0)
    if kind.name not in BLOCK_BYTES:
        return quantize(draw.standard_normal((48, 512), np.float32), kind)
    rows = draw.integers(0, 256, (48, 2, BLOCK_BYTES[kind.name]), np.uint8)
    halves = draw.uniform(0.001, 0.01, (48, 2, 2)).astype(np.float16).view(np.uint8)
    if kind.name == "Q6_K":
        rows[..., -2:] = halves[..., :2]
    else:
        rows[..., :4] = halves
    return rows.reshape(48, -1)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0"])
def test_blocks_keep_their_values(name):
    kind = GGMLQuantizationType[name]
    data = blocks(kind)
    truth = torch.from_numpy(dequantize(data, kind))
    own = {"Q4_0": 4, "Q4_1": 4, "Q4_K": 4, "Q5_0": 6, "Q6_K": 6}.get(name, 8)
    for bits in (OWN, own, 8) if own != 6 else (OWN,):
        found = matrix(data, kind, bits)
        assert found.bits == (bits or own)
        torch.testing.assert_close(found.dense(), truth, rtol=2e-3, atol=2e-3 * truth.abs().max())


@pytest.mark.parametrize("name", ["Q5_0", "Q6_K", "Q8_0", "F16"])
@pytest.mark.parametrize(("bits", "error"), [(4, 0.04), (8, 0.003)])
def test_others_are_rounded_to_as_many_bits_as_asked(name, bits, error):
    kind = GGMLQuantizationType[name]
    data = blocks(kind)
    truth = torch.from_numpy(np.array(dequantize(data, kind), np.float32))
    groups = truth.unflatten(1, (-1, 32))
    span = (groups.amax(-1) - groups.amin(-1)).repeat_interleave(32, 1)
    found = matrix(data, kind, bits)
    assert found.bits == bits
    assert ((found.dense() - truth).abs() <= error * span + 1e-6).all()


def test_constant_groups_and_zeros_are_kept():
    weight = torch.zeros(20, 64)
    weight[3] = 0.5
    assert torch.equal(rounded(weight, 4).dense(), weight)


@needs_kernel
@pytest.mark.parametrize("kinds", [(4, 4, 4), (8, 8, 8), (4, 4, 8), "packed", "plain"])
@pytest.mark.parametrize("bias", [True, False])
def test_joined_layers_say_the_same_and_hold_nothing_twice(kinds, bias):
    torch.manual_seed(0)
    parts = torch.nn.ModuleList(torch.nn.Linear(64, n, bias=bias) for n in (96, 32, 32))
    if kinds == "packed":
        pack(parts)
    elif kinds != "plain":
        parts = [IntegerLinear(rounded(p.weight, bits), p.bias) for p, bits in zip(parts, kinds, strict=True)]
    x = torch.randn(5, 64)
    with torch.inference_mode():
        before = [part(x) for part in parts]
        for seed in (1, 2):  # joined again, as when weights have changed
            draw = torch.Generator().manual_seed(seed)
            order = [torch.randperm(96, generator=draw), torch.randperm(32, generator=draw), None]
            whole = joined(parts, order)
            wanted = [y if rows is None else y[..., rows] for y, rows in zip(before, order, strict=True)]
            torch.testing.assert_close(whole(x), torch.cat(wanted, -1))
            for part, y in zip(parts, before, strict=True):
                torch.testing.assert_close(part(x), y)
    if isinstance(whole, IntegerLinear):
        owner = whole.codes.untyped_storage().data_ptr()
        assert {part.matrix.codes.untyped_storage().data_ptr() for part in parts} == {owner}
    if kinds == "packed":
        assert not any("weight" in layer._parameters for layer in (whole, *parts))


@pytest.mark.sampled
@needs_kernel
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tied", [True, False])
def test_speculative_decoding_is_exact(kind, bits, tied):
    draft, target = (tiny(kind, layers=2, seed=seed, tie_word_embeddings=tied) for seed in (1, 2))
    for lm in (draft, target):
        quantise(lm.model, bits)
    assert target.dtype == f"int{bits}" and isinstance(target.model.get_input_embeddings(), IntegerEmbedding)
    if tied:
        assert target.model.lm_head.matrix is target.model.model.embed_tokens.matrix
    ids = torch.randint(3, 37, (1, 7), generator=torch.Generator().manual_seed(0))
    alone = generate(Autoregressive(target), ids, max_new_tokens=24, eos_token_id=())
    for length in (1, 4, 7):
        drafted = generate(Speculative([draft, target], length=length), ids, max_new_tokens=24, eos_token_id=())
        assert torch.equal(drafted.sequences, alone.sequences)


@needs_kernel
@pytest.mark.parametrize("prompt", [7, 40, 90])
def test_logits_have_the_same_bits_token_by_token_and_with_a_draft(prompt):
    """Of long prompts too, which torch's attention read: it changed the last bits with the number of tokens."""
    target = tiny("qwen2", layers=3, seed=3, intermediate_size=64, max_position_embeddings=256)
    quantise(target.model, 4)
    ids, row = torch.randint(3, 37, (1, prompt + 24), generator=torch.Generator().manual_seed(1)), torch.tensor([0])
    single, drafted = target.session(1, prompt + 24), target.session(1, prompt + 24)
    alone = [single.next(ids, torch.tensor([length]), row)[0] for length in range(prompt, prompt + 25)]
    together = [
        drafted.catch_up(ids, torch.tensor([length]), row, logits_to_keep=kept)[0]
        for length, kept in ((prompt + 5, 6), (prompt + 24, 19))
    ]
    assert torch.equal(torch.cat(alone), torch.cat(together))
    assert single.reads == [prompt] + 24 * [1]


@needs_kernel
@pytest.mark.parametrize("lengths", [(7, 40, 90), (70, 90, 300), (1, 400, 2, 3)], ids=str)
def test_a_row_has_the_same_bits_in_every_batch(lengths):
    """A batch read prompts padded to the longest, in other blocks: near-ties of half of the prompts fell otherwise."""
    target, rows = tiny("qwen2", layers=3, seed=3, intermediate_size=64, max_position_embeddings=512), len(lengths)
    quantise(target.model, 4)
    ids = torch.randint(3, 37, (rows, max(lengths)), generator=torch.Generator().manual_seed(1))
    size = max(lengths)
    together = target.session(rows, size).next(ids, torch.tensor(lengths), torch.arange(rows))[0]
    for row, length in enumerate(lengths):
        alone = target.session(1, size).next(ids[row : row + 1], torch.tensor([length]), torch.tensor([0]))[0]
        assert torch.equal(alone[0], together[row])
        assert torch.equal(target.read(ids[row : row + 1, :length], 1)[0], alone)


@needs_kernel
def test_a_folder_in_four_bits(tmp_path):
    tiny().model.save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is not a quantised GGUF file, so it has no bits to keep; take int4 or int8"):
        LM.load(tmp_path, dtype="file")
    lm = LM.load(tmp_path, dtype="int4")
    assert lm.dtype == lm.identity()["dtype"] == "int4"
    assert LM.load(tmp_path, dtype="auto").dtype == "float32"
    plain = LM.load(tmp_path)
    assert not any("weight" in m._parameters for m in plain.model.modules() if isinstance(m, PackedLinear))


def test_names_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match="dtype must be auto, file, int4, int8, or a torch floating type"):
        LM.load(tmp_path, dtype="int3")
    with pytest.raises(ValueError, match="int4 weights run on the CPU, not on cuda"):
        LM.load(tmp_path, device="cuda", dtype="int4")


@needs_kernel
def test_a_file_that_is_quantised_already():
    lm = LM.load(DRAFTER, dtype="auto")
    assert lm.dtype == "int4" and LM.load(DRAFTER, dtype="file").identity() == lm.identity()
    assert lm.weights_held() == "4 bits, 0.01 GiB" and LM.load(DRAFTER).weights_held() == "float32"
    assert LM.load(DRAFTER, dtype="int8").dtype == "int8"
    lm.model.model.layers[0].mlp.down_proj = IntegerLinear(rounded(torch.ones(64, 64), 8))
    assert lm.dtype == "file", "not all alike"


@needs_kernel
@pytest.mark.parametrize("kind", ["qwen2", "qwen2-window", "gemma2"])
@pytest.mark.parametrize("text", [9, 18, 31])
def test_a_path_of_a_tree_has_the_bits_of_a_plain_text(kind, text):
    """Its nodes lie between nodes of other paths: sums in another order changed the last bits, and 4-bit texts."""
    target = tiny(kind, layers=3, seed=3, intermediate_size=64)
    quantise(target.model, 4)
    parents, path = [-1, -1, -1, 1, 1, 4, 4], [1, 4, 6]
    seen, depth = torch.zeros(1, 7, 7, dtype=torch.bool), torch.ones(1, 7, dtype=torch.long)
    for node, parent in enumerate(parents):
        seen[0, node, node] = True
        if parent >= 0:
            seen[0, node] |= seen[0, parent]
            depth[0, node] += depth[0, parent]
    ids, row = torch.randint(3, 37, (1, text + 7), generator=torch.Generator().manual_seed(1)), torch.tensor([0])
    session, lengths = target.session(1, text + 8), torch.tensor([text])
    session.next(ids, lengths, row)
    nodes = session.catch_up(ids, lengths + 7, row, logits_to_keep=7, tree=TokenTree(lengths, depth, seen))[0]
    plain = torch.cat([ids[:, :text], ids[:, text:][:, path]], 1)
    alone, read = target.session(1, text + 8), [torch.tensor([text + i + 1]) for i in range(3)]
    for node, length in zip(path, read, strict=True):
        assert torch.equal(alone.next(plain, length, row)[0][0], nodes[node])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["Q5_0", "Q6_K", "Q8_0"])
def test_blocks_are_rounded_as_their_dense_matrix_is(kind, bits):
    """One compiled pass over the blocks gives the bits that rounding the unpacked matrix gives."""
    if (kind, bits) == ("Q8_0", 8):
        pytest.skip("its codes are kept")
    kind = GGMLQuantizationType[kind]
    rows = blocks(kind)
    plain = rounded(torch.from_numpy(np.array(dequantize(rows, kind), np.float32)), bits)
    found = matrix(rows, kind, bits)
    assert torch.equal(found.codes, plain.codes) and torch.equal(found.scales, plain.scales)
