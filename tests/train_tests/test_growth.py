"""A drafter that grew computes what it did, and everything that is new in it learns."""

import pytest
import torch
from tiny_models import tiny

from train.distillation.grow import grow


@pytest.fixture(scope="module")
def small():
    """Two heads share a key; weights large enough that a mistake shows, as do norms that are not 1."""
    model = tiny(seed=5, layers=2, initializer_range=0.3, tie_word_embeddings=True).model
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    return model


def sizes(model):
    c = model.config
    return c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.intermediate_size


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("more", [0, 1, 3])
@pytest.mark.parametrize("inner", [None, 100])
def test_it_writes_the_same(small, factor, more, inner):
    layers, width, heads, keys, _ = sizes(small)
    torch.manual_seed(0)
    large = grow(small, layers + more, width * factor, heads * factor, inner)
    assert sizes(large)[:4] == (layers + more, width * factor, heads * factor, keys * factor)
    ids = torch.randint(small.config.vocab_size, (2, 12))
    with torch.inference_mode():
        torch.testing.assert_close(large(ids).logits, small(ids).logits, atol=2e-4, rtol=1e-4)


def test_what_is_new_learns(small):
    layers, width, heads, _, _ = sizes(small)
    large = grow(small, layers + 1, 2 * width, 2 * heads)
    optimizer = torch.optim.SGD(large.parameters(), lr=0.1)
    ids = torch.randint(small.config.vocab_size, (4, 12))
    before = {name: weight.detach().clone() for name, weight in large.named_parameters()}
    for _ in range(3):  # what writes learns first, then what it writes with, then the embedding that reads it
        loss = large(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, weight in large.named_parameters():
        new = (weight - before[name]).abs()
        assert new[..., -1].max() > 0, name
        assert new[-1].max() > 0, name


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ({"layers": 1}, "num_hidden_layers 1 .now 2"),
        ({"width": 16}, "hidden_size 16"),
        ({"width": 70, "heads": 5}, "--width must be --heads times 8"),
    ],
)
def test_what_is_no_growth_is_refused(small, size, words):
    with pytest.raises(ValueError, match=words):
        grow(small, **size)
