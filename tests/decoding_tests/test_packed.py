"""Packed linear layers compute what plain ones do, and notice when their weights change."""

import copy

import pytest
import torch
from tiny_models import tiny

from decoding import LM
from decoding.kernels.packed_products import EXACT, PackedLinear, pack, padded


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (5, 24), (2, 3, 24), (0, 24), (17, 24), (3, 35, 24)])
def test_it_is_the_same_product(bias, shape):
    torch.manual_seed(0)
    plain = torch.nn.Linear(24, 40, bias=bias)
    packed = copy.deepcopy(plain)
    pack(packed)
    x = torch.randn(shape)
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), plain(x))


def test_few_products_are_compiled(monkeypatch):
    """One for every number of rows, each kept for ever, was how memory grew with every new length of a text."""
    assert [padded(rows) for rows in range(EXACT + 1)] == list(range(EXACT + 1))
    sizes = {padded(rows) for rows in range(1, 4097)}
    assert len(sizes) == EXACT + 8 * 8
    assert all(rows <= padded(rows) <= 1.125 * rows for rows in range(1, 5000))
    layer = torch.nn.Linear(8, 8)
    pack(layer)
    multiplied = set()
    product = torch.ops.mkldnn._linear_pointwise
    counted = lambda x, *rest: multiplied.add(x.shape[:-1].numel()) or product(x, *rest)  # noqa: E731
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    with torch.inference_mode():
        for rows in range(1, 300):
            assert layer(torch.randn(1, rows, 8)).shape == (1, rows, 8)
    assert multiplied == {size for size in sizes if size <= padded(299)}


def test_it_sees_new_weights():
    layer = torch.nn.Linear(8, 8)
    pack(layer)
    x = torch.randn(2, 8)
    with torch.no_grad():
        layer(x)
        layer.load_state_dict(torch.nn.Linear(8, 8).state_dict())
        torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
        layer.weight = torch.nn.Parameter(torch.randn(8, 8))
        torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
        layer.double()
        torch.testing.assert_close(layer(x.double()), torch.nn.functional.linear(x.double(), layer.weight, layer.bias))


def test_it_learns_and_is_copied():
    layer = torch.nn.Linear(8, 8)
    pack(layer)
    x = torch.randn(2, 8, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        other = copy.deepcopy(layer)
        layer(x)
        torch.testing.assert_close(copy.deepcopy(layer)(x), other(x))


def test_a_loaded_model_is_packed_and_keeps_its_parameters(tmp_path):
    lm = tiny()
    lm.model.save_pretrained(tmp_path)
    from tiny_models import words

    words().save_pretrained(tmp_path)
    packed, plain = LM.load(tmp_path), LM.load(tmp_path, packed=False)
    assert any(isinstance(m, PackedLinear) for m in packed.model.modules())
    assert not any(isinstance(m, PackedLinear) for m in plain.model.modules())
    assert packed.model.state_dict().keys() == plain.model.state_dict().keys()
    assert packed.identity() == plain.identity()
    ids = torch.randint(3, 37, (2, 9))
    with torch.inference_mode():
        torch.testing.assert_close(packed.model(ids).logits, plain.model(ids).logits, rtol=1e-4, atol=1e-4)
