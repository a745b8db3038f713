"""Products with 4-, 6- and 8-bit weights: equal to the dequantised matrix, whatever else is in the call."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding.kernels import integer_products
from decoding.kernels.instruction_sets import SETS
from decoding.kernels.integer_ir import BITS
from decoding.kernels.integer_products import IntegerMatrix, available, compiled, instructions, multiply

pytestmark = pytest.mark.skipif(not available(), reason="needs an x86 processor with AVX2 and torch on OpenMP")
USABLE = [name for name in SETS if available() and (name == "avx2" or name == instructions())]


def matrix(outputs: int, columns: int, bits: int, seed: int = 0) -> tuple[IntegerMatrix, torch.Tensor]:
    """A random matrix, packed and dense; its scales and minima are float16 numbers."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (outputs, columns), dtype=torch.uint8, generator=generator)
    first, second = (1 + torch.rand(2, outputs, columns // 32, generator=generator)).half().float()
    if bits == 6:
        halves = torch.stack([first, -second], -1)[..., None] * 0.25
        dense = (codes.view(outputs, -1, 2, 16).float() - 32) * halves
        return IntegerMatrix.pack(codes, 0.25 * first, -0.25 * second, bits), dense.view(outputs, columns)
    dense = codes.view(outputs, -1, 32) * 0.25 * first[..., None] - second[..., None]
    return IntegerMatrix.pack(codes, 0.25 * first, -second, bits), dense.view(outputs, columns)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """The activations as the product sees them, in 8 bits with a scale for 32, float64."""
    groups = x.unflatten(-1, (-1, 32))
    scale = groups.abs().amax(-1, keepdim=True) / 127
    return (torch.round(groups / scale).nan_to_num(0).double() * scale).flatten(-2)


def clear_of_ties(rows: int, columns: int) -> torch.Tensor:
    """Activations [rows, columns] that every way of dividing rounds alike: none lies within 0.1 of a tie."""
    codes = torch.randint(-126, 127, (rows, columns // 32, 32)) + 0.8 * torch.rand(rows, columns // 32, 32) - 0.4
    codes[..., 0] = 127
    return (codes * (0.001 + torch.rand(rows, columns // 32, 1))).flatten(-2)


@pytest.fixture(params=USABLE)
def instruction_set(request, monkeypatch) -> str:
    monkeypatch.setattr(integer_products, "_compiled", lambda: compiled(request.param))
    return request.param


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 6), st.sampled_from(BITS), st.integers(0, 99))
def test_unpacks_to_what_was_packed(outputs, groups, bits, seed):
    packed, dense = matrix(outputs, 32 * groups, bits, seed)
    assert torch.equal(packed.dense(), dense)
    assert torch.equal(packed.rows(torch.tensor([[0], [outputs - 1]])), dense[[0, -1]][:, None])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("outputs", "columns"), [(16, 32), (50, 96), (300, 1536)])
def test_equals_the_dense_product_of_rounded_activations(instruction_set, bits, outputs, columns):
    packed, dense = matrix(outputs, columns, bits)
    x, bias = clear_of_ties(33, columns).view(3, 11, columns), torch.randn(len(packed.codes) * 16)
    truth = rounded(x) @ dense.double().T + bias[:outputs]
    torch.testing.assert_close(multiply(x, packed, bias).double(), truth, rtol=1e-4, atol=1e-4 * truth.abs().max())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("highest", [False, True])
def test_extreme_codes_and_activations_do_not_overflow(instruction_set, bits, highest):
    code = 2**bits - 1 if highest else 0
    codes = torch.full((16, 8960), code, dtype=torch.uint8)
    ones = torch.ones(16, 280)
    packed = IntegerMatrix.pack(codes, ones, ones if bits == 6 else 0 * ones, bits)
    value = code - 32 if bits == 6 else code
    for sign in (1, -1):
        y = multiply(torch.full((1, 8960), 127.0 * sign), packed, torch.zeros(16))
        assert torch.equal(y, torch.full((1, 16), sign * 127.0 * value * 8960))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("bits", BITS)
def test_a_row_has_the_same_bits_in_every_call(instruction_set, bits, threads):
    packed, _ = matrix(80, 256, bits)
    x, bias = torch.randn(40, 256), torch.randn(80)
    before = torch.get_num_threads()
    whole = multiply(x, packed, bias)
    try:
        torch.set_num_threads(threads)
        for rows in range(1, 41):
            assert torch.equal(multiply(x[40 - rows :], packed, bias), whole[40 - rows :])
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(len(USABLE) < 2, reason="this processor has one instruction set of the two")
@pytest.mark.parametrize("bits", BITS)
def test_instruction_sets_agree_to_the_bit(monkeypatch, bits):
    packed, _ = matrix(64, 512, bits)
    x = torch.randn(19, 512)
    results = []
    for name in USABLE:
        monkeypatch.setattr(integer_products, "_compiled", lambda name=name: compiled(name))
        results.append(multiply(x, packed, torch.zeros(64)))
    assert torch.equal(*results)


@pytest.mark.parametrize("name", SETS)
def test_the_code_of_every_instruction_set_is_valid(name):
    """Also of those that this processor has not."""
    functions = {function.name for function in integer_products._module(name).functions}
    assert {"multiply4", "multiply6", "multiply8", "run"} <= functions


def test_broken_activations_show_in_their_row_only(instruction_set):
    packed, _ = matrix(32, 64, 4)
    x, bias = torch.randn(5, 64), torch.randn(32)
    x[0, 7], x[1, 40], x[2, 3], x[3] = float("nan"), float("inf"), float("-inf"), 0
    y = multiply(x, packed, bias)
    assert y[:3].isnan().all()
    assert torch.equal(y[3], bias)
    assert y[4].isfinite().all()


def test_tiles_are_joined_and_split_along_the_outputs():
    (first, _), (second, _) = matrix(48, 64, 4, 1), matrix(32, 64, 4, 2)
    codes, scales = torch.cat([first.codes, second.codes]), torch.cat([first.scales, second.scales])
    both = IntegerMatrix(codes, scales, 80)
    x = torch.randn(3, 64)
    parts = [multiply(x, part, torch.zeros(part.outputs)) for part in (first, second)]
    assert torch.equal(multiply(x, both, torch.zeros(80)), torch.cat(parts, -1))
    view = IntegerMatrix(codes[3:], scales[3:], 32)
    assert torch.equal(multiply(x, view, torch.zeros(32)), parts[1])


def test_columns_come_in_whole_groups():
    with pytest.raises(ValueError, match="33 columns has no whole groups of 32"):
        IntegerMatrix.pack(torch.zeros(16, 33, dtype=torch.uint8), torch.ones(16, 1), torch.ones(16, 1), 4)


def test_no_rows_are_no_work():
    packed, _ = matrix(16, 32, 4)
    assert multiply(torch.empty(0, 32), packed, torch.zeros(16)).shape == (0, 16)
