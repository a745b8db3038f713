"""Speed of our products with 4-, 6- and 8-bit weights against torch's, and against bfloat16, at the shapes of a model.

python experiments/integer_products.py --width 1536 --inner 8960 --layers 28 --vocab 151936

All matrices of a model are multiplied one after another, as in a forward, so that they come from memory and not from a
cache. Weights are random. Prints median milliseconds for each number of rows, and gigabytes of weights a second.
"""

if __name__ == "__main__":  # the imports below take time, in which Ctrl-C is no fault
    from decoding.cli.stopping import stop_quietly

    stop_quietly()

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from decoding.cli.options import use
from decoding.kernels.integer_ir import BITS
from decoding.kernels.integer_products import IntegerMatrix, available, compiled, instructions
from decoding.kernels.integer_products import multiply as integer_product
from decoding.kernels.tile_ir import GROUP, TILE
from train.common.cli import command

KEYS = 256
"""width of keys, and of values"""


@dataclass
class IntegerProducts:
    """Median milliseconds of all products of one forward, by kind of weights and number of rows."""

    width: int = 1536
    """of hidden states; the defaults are the shapes of Qwen2.5 1.5B"""
    inner: int = 8960
    """width of the feed-forward layers"""
    layers: int = 28
    vocab: int = 151936
    rows: tuple[int, ...] = (1, 2, 4, 5, 8, 16, 64)
    repeats: int = 7
    """forwards of which the median is taken"""
    threads: int | None = None


def run(config: IntegerProducts) -> None:
    """Print a line for each kind of weights and number of rows."""
    use("cpu", config.threads)
    layer = [(config.width + 2 * KEYS, config.width), (config.width, config.width)]
    layer += [(2 * config.inner, config.width), (config.width, config.inner)]
    shapes = layer * config.layers + [(config.vocab, config.width)]
    if available():
        compiled(instructions())
    for name, make in KINDS.items():
        products = [(columns, *make(outputs, columns)) for outputs, columns in shapes]
        size = sum(size for _, _, size in products)
        for rows in config.rows:
            median = measure([(columns, product) for columns, product, _ in products], rows, config.repeats)
            print(f"{name:<12} {rows:>3} rows {1e3 * median:8.1f} ms {size / median / 1e9:6.1f} GB/s", flush=True)
        del products


def measure(products: list[tuple[int, Callable]], rows: int, repeats: int) -> float:
    """Median seconds of all ``products`` with ``rows`` rows of activations."""
    x = {columns: torch.randn(rows, columns) for columns, _ in products}
    x |= {(columns, "bfloat16"): values.bfloat16() for columns, values in x.items()}
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        for columns, product in products:
            product(x[columns], x[columns, "bfloat16"])
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def _ours(bits: int) -> Callable:
    def make(outputs: int, columns: int) -> tuple[Callable, int]:
        tiles, groups = -(-outputs // TILE), columns // GROUP
        codes = torch.randint(0, 255, (tiles, groups, 64 * bits), dtype=torch.uint8)
        scales, bias = torch.rand(tiles, groups, 2, TILE).half(), torch.zeros(tiles * TILE)
        matrix = IntegerMatrix.stacked([IntegerMatrix(codes, scales, outputs)], outputs)  # in large pages, as models
        return lambda x, _: integer_product(x, matrix, bias), codes.nbytes + scales.nbytes

    return make


def _torch_int4(outputs: int, columns: int) -> tuple[Callable, int]:
    codes = torch.randint(0, 16, (outputs, columns), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = torch.rand(columns // GROUP, outputs, 2).bfloat16()
    product = torch.ops.aten._weight_int4pack_mm_for_cpu
    return lambda _, x: product(x, packed, GROUP, scales), packed.nbytes + scales.nbytes


def _torch_int8(outputs: int, columns: int) -> tuple[Callable, int]:
    codes = torch.randint(-127, 128, (outputs, columns), dtype=torch.int8)
    scales = torch.rand(outputs).bfloat16()
    return lambda _, x: torch._weight_int8pack_mm(x, codes, scales), codes.nbytes + scales.nbytes


def _bfloat16(outputs: int, columns: int) -> tuple[Callable, int]:
    weight = torch.randn(outputs, columns, dtype=torch.bfloat16)
    return lambda _, x: F.linear(x, weight), weight.nbytes


KINDS = {"torch bf16": _bfloat16, "torch int8": _torch_int8, "torch int4": _torch_int4}
if available():
    KINDS |= {f"ours {bits} bits": _ours(bits) for bits in reversed(BITS)}

main = command(IntegerProducts, run, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
