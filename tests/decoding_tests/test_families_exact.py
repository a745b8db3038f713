"""Exact drafts keep the text of the large model alone, for every family of the fused forward in each dtype of a CPU."""

import pytest
import torch
from tiny_models import mostly_slow, nudged, tiny

from decoding import Autoregressive, Speculative, generate
from decoding.kernels.families import FAMILIES
from decoding.kernels.integer_products import available
from decoding.kernels.packed_products import pack
from decoding.kernels.quantized import quantise

pytestmark = pytest.mark.sampled

KINDS = ("llama", "mistral-window", "qwen2-window", "qwen3", "phi3-window", "gemma", "gemma2", "gemma3", "smollm3")
KINDS += ("olmo2", "granite")
needs_kernel = pytest.mark.skipif(not available(), reason="needs an x86 processor with AVX2 and torch on OpenMP")
DTYPES = ["float32", "bfloat16", *(pytest.param(name, marks=needs_kernel) for name in ("int8", "int4"))]
NEW = 24


def changed(lm, dtype: str):
    """``lm`` as it would have been loaded in this dtype."""
    if dtype.startswith("int"):
        quantise(lm.model, int(dtype[3:]))
    else:
        lm.model.to(getattr(torch, dtype))
        pack(lm.model)
    return lm


def test_every_family_is_here():
    assert {type(tiny(kind, layers=3).model).__name__ for kind in KINDS} == set(FAMILIES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", mostly_slow(KINDS))
def test_exact_drafts_keep_the_text(kind, dtype):
    large = tiny(kind, layers=3, seed=1, intermediate_size=64)
    pair = [changed(nudged(large), dtype), changed(large, dtype)]
    assert large.dtype == dtype
    ids = torch.randint(3, 37, (1, 12), generator=torch.Generator().manual_seed(0))  # past the window
    alone = generate(Autoregressive(large), ids, max_new_tokens=NEW, eos_token_id=())
    for length in (2, 5):
        drafted = generate(Speculative(pair, length), ids, max_new_tokens=NEW, eos_token_id=())
        assert torch.equal(drafted.sequences, alone.sequences)
        assert 0 < drafted.counts["accepted"] < drafted.counts["drafted"]
