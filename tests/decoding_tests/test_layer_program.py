"""All layers in one call have the bits of the same steps one by one: every family, rows, windows, trees, threads."""

import pytest
import torch
from tiny_models import nudged, tiny

from decoding import MTAD, SpecInfer, Speculative, generate
from decoding.kernels.integer_products import available
from decoding.kernels.layer_program import PROGRAMS
from decoding.kernels.quantized import IntegerLinear, quantise, rounded

KINDS = ("llama", "qwen2-window", "qwen3", "phi3-window", "gemma2", "gemma3", "smollm3", "olmo2", "granite")

pytestmark = pytest.mark.skipif(not available(), reason="needs an x86 processor with AVX2 and torch on OpenMP")


def quantised(kind: str = "llama", bits: int = 4, seed: int = 1):
    lm = tiny(kind, layers=3, seed=seed, intermediate_size=64, max_position_embeddings=256)
    quantise(lm.model, bits)
    return lm


def logits(lm, ids: torch.Tensor, counts) -> torch.Tensor:
    """Of all that is read: first a prompt, then so many tokens at a time, of all rows and of the last two."""
    session, rows = lm.session(len(ids), ids.shape[1] + 1), torch.arange(len(ids))
    lengths, found = torch.tensor([5, 9, 12]), []
    found.append(session.catch_up(ids, lengths, rows).flatten())
    for count in counts:
        lengths = lengths + count
        found.append(session.catch_up(ids, lengths, rows, logits_to_keep=count).flatten())
        lengths[1:] += 1
        found.append(session.next(ids, lengths[1:], rows[1:], hidden=True)[1].flatten())
    return torch.cat(found)


@pytest.mark.sampled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_its_bits_are_those_of_single_steps(kind, threads):
    lm = quantised(kind)
    fused, before = lm.fused_forward(), torch.get_num_threads()
    assert fused.programs is not None
    ids = torch.randint(3, 37, (3, 40), generator=torch.Generator().manual_seed(0))
    try:
        torch.set_num_threads(threads)
        with torch.inference_mode():  # programs are made in it, and used outside
            together = logits(lm, ids, (1, 4, 2, 1))
        again = logits(lm, ids, (1, 4, 2, 1))
        fused.programs = None
        assert torch.equal(together, again) and torch.equal(together, logits(lm, ids, (1, 4, 2, 1)))
    finally:
        torch.set_num_threads(before)


def test_products_of_several_widths_of_codes_lie_side_by_side():
    lm = quantised()
    for layer in lm.model.model.layers:
        attention = layer.self_attn
        attention.v_proj = IntegerLinear(
            rounded(attention.v_proj.weight, 8), torch.randn(attention.v_proj.out_features)
        )
    ids = torch.randint(3, 37, (3, 40), generator=torch.Generator().manual_seed(0))
    together = logits(lm, ids, (1, 4))
    assert lm.fused_forward().programs.programs
    lm.fused_forward().programs = None
    assert torch.equal(together, logits(lm, ids, (1, 4)))


def test_trees_and_drafts_are_the_same():
    target = quantised("qwen2-window")
    draft = nudged(tiny("qwen2-window", layers=3, seed=1, intermediate_size=64, max_position_embeddings=256))
    quantise(draft.model, 4)
    ids = torch.randint(3, 37, (2, 9), generator=torch.Generator().manual_seed(0))
    decoders = (
        lambda: Speculative([draft, target], length=3),
        lambda: SpecInfer([draft, target], branches=(2, 2)),
        lambda: MTAD([draft, target], beams=2, length=3, tau=0.1),
    )
    for decoder in decoders:
        together = generate(decoder(), ids, max_new_tokens=20, eos_token_id=())
        kept = [lm.fused_forward().programs for lm in (draft, target)]
        draft.fused_forward().programs = target.fused_forward().programs = None
        single = generate(decoder(), ids, max_new_tokens=20, eos_token_id=())
        draft.fused_forward().programs, target.fused_forward().programs = kept
        assert torch.equal(together.sequences, single.sequences) and together.counts == single.counts


def test_few_shapes_are_kept():
    lm = quantised()
    for tokens in range(1, PROGRAMS + 5):
        lm.session(1, 64).next(torch.full((1, tokens), 5), torch.tensor([tokens]), torch.tensor([0]))
    assert len(lm.fused_forward().programs.programs) == PROGRAMS


def test_layers_that_are_not_all_integers_are_done_step_by_step():
    lm = quantised()
    lm.model.model.layers[1].mlp.down_proj = torch.nn.Linear(64, lm.model.config.hidden_size, bias=False)
    assert lm.fused_forward().programs is None
    lm.session(1, 8).next(torch.full((1, 3), 5), torch.tensor([3]), torch.tensor([0]))
