"""Products with weights of 4, 6 and 8 bits on a CPU, at the speed at which the weights are read.

In 4 and 8 bits w = scale * code + minimum, with one scale and one minimum for 32 neighbouring weights of a row: GGUF's
Q4_0, Q4_1, Q4_K, Q5_1, Q5_K and Q8_0. In 6 bits w = scale * (code - 32), with a scale for 16 neighbours: Q6_K and Q5_0.
All of them up to the rounding of scales to float16. Activations are rounded to 8 bits, 32 at a
time, as llama.cpp rounds them. The code (``integer_ir``) is compiled when it is first needed, in about a second, by
the compiler that numba brings, and runs on torch's own threads. What it is worth: ``experiments/integer_products.py``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from decoding.kernels.huge_pages import joined_in_memory
from decoding.kernels.instruction_sets import SETS
from decoding.kernels.integer_ir import ARGUMENTS, BITS, MULTIPLY, PARALLEL, SERIAL, assembly
from decoding.kernels.packing import pack
from decoding.kernels.tile_ir import GROUP, MIDDLE, TILE


class Arguments(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p if i < 6 else ctypes.c_int64) for i, name in enumerate(ARGUMENTS)]


class Step(ctypes.Structure):
    """A product or a compiled kernel with its arguments, which must stay alive."""

    _fields_ = [("function", ctypes.c_void_p), ("arguments", ctypes.c_void_p), ("kind", ctypes.c_int64)]

    @classmethod
    def of_kernel(cls, function: int, arguments: int, parallel: bool) -> Step:
        """A function of the address of its arguments, called once, or by every thread."""
        return cls(function, arguments, PARALLEL if parallel else SERIAL)

    @classmethod
    def of_product(cls, bits: int, arguments: Arguments) -> Step:
        return cls(ctypes.cast(_compiled()[bits], ctypes.c_void_p).value, ctypes.addressof(arguments), MULTIPLY)


@dataclass(slots=True, eq=False)
class IntegerMatrix:
    """A matrix [N, K] in tiles of 16 rows and groups of 32 columns; K is a multiple of 32.

    ``codes`` uint8 [N / 16, K / 32, 64 * bits] and ``scales`` float16 [N / 16, K / 32, 2, 16] are split and joined
    along their first dimension: scale and minimum, in 6 bits the scales of the first and the last 16 columns. Rows
    above ``outputs`` fill the last tile.
    """

    codes: Tensor
    scales: Tensor
    outputs: int

    @classmethod
    def pack(cls, rows: Tensor, first: Tensor, second: Tensor, bits: int, kind: str = "codes") -> IntegerMatrix:
        """From ``rows`` uint8 [N, bytes] of codes below 2**bits, a byte each or in blocks of a file (``packing``).

        ``first`` and ``second`` [N, K / 32] are scale and minimum, in 6 bits two scales.
        """
        outputs, groups = first.shape
        if kind == "codes" and rows.shape[1] != groups * GROUP:
            raise ValueError(f"a matrix of {rows.shape[1]} columns has no whole groups of {GROUP}")
        codes = pack(rows, groups, bits, kind)
        both = torch.stack([first, second], -1).to(torch.float16)
        if missing := -outputs % TILE:
            both = torch.cat([both, both.new_zeros(missing, groups, 2)])
        return cls(codes, both.unflatten(0, (-1, TILE)).permute(0, 2, 3, 1).contiguous(), outputs)

    @classmethod
    def stacked(cls, parts: Sequence[IntegerMatrix], outputs: int) -> IntegerMatrix:
        """The rows of all ``parts``, of whole tiles but for the last, as one matrix in memory of its own."""
        codes, scales = (joined_in_memory([getattr(part, name) for part in parts]) for name in ("codes", "scales"))
        return cls(codes, scales, outputs)

    @property
    def bits(self) -> int:
        return self.codes.shape[-1] // 64

    @property
    def columns(self) -> int:
        return self.codes.shape[1] * GROUP

    def rows(self, ids: Tensor) -> Tensor:
        """Rows ``ids`` [...] of the matrix, float32 [..., K]."""
        flat = ids.flatten()
        tile, row = flat // TILE, flat % TILE
        codes = _unpacked(self.codes.unflatten(-1, (self.bits, TILE, 4))[tile, :, :, row])  # [ids, group, steps, 4]
        first, second = self.scales[tile, :, :, row].float().unbind(-1)  # [ids, group] each
        if self.bits == 6:
            values = (codes.unflatten(2, (2, 4)).float() - MIDDLE) * torch.stack([first, second], -1)[..., None, None]
        else:
            values = codes.float() * first[..., None, None] + second[..., None, None]
        return values.view(*ids.shape, self.columns)

    def dense(self) -> Tensor:
        """All of it, float32 [N, K]."""
        return self.rows(torch.arange(self.outputs))


def _unpacked(stored: Tensor) -> Tensor:
    """Codes [row, group, 8, column] of the bytes [row, group, bits, column] of single rows."""
    bits = stored.shape[2]
    if bits == 8:
        return stored
    codes = torch.cat([stored[:, :, :4] & 15, stored[:, :, :4] >> 4], 2)
    if bits == 4:
        return codes
    upper = stored[:, :, 4:, None] >> torch.arange(0, 8, 2, dtype=torch.uint8)[:, None] & 3
    return codes | upper.flatten(2, 3) << 4


def multiply(x: Tensor, matrix: IntegerMatrix, bias: Tensor) -> Tensor:
    """``x`` float32 [..., K] times the transpose of ``matrix`` [N, K], plus ``bias`` float32 [N, up to whole tiles].

    Returns float32 [..., N]. A row of the result has the same bits whatever other rows are multiplied in the call.
    Raises RuntimeError where ``available`` is False.
    """
    x = x.contiguous()
    rows, tiles = x.shape[:-1].numel(), len(matrix.codes)
    y = x.new_empty(*x.shape[:-1], tiles * TILE)
    if rows:
        integers = x.new_empty(integers_size(rows, matrix.columns))
        arguments = product_arguments(x, matrix, bias, integers, y)
        _compiled()[matrix.bits](ctypes.byref(arguments), torch.get_num_threads())
    return y if matrix.outputs == tiles * TILE else y[..., : matrix.outputs]


def product_arguments(
    x: Tensor, matrix: IntegerMatrix, bias: Tensor, integers: Tensor, y: Tensor, begin: int = 0
) -> Arguments:
    """Arguments of a product of ``x`` [..., K] into the columns of ``y`` [..., width] from ``begin`` on.

    ``integers`` float32 [``integers_size``] is overwritten. All tensors are contiguous, and stay alive.
    """
    pointers = [t.data_ptr() for t in (matrix.codes, matrix.scales, bias, x, integers)]
    rows = x.shape[:-1].numel()
    return Arguments(*pointers, y.data_ptr() + 4 * begin, len(matrix.codes), matrix.columns, y.shape[-1], rows)


def integers_size(rows: int, columns: int) -> int:
    """Numbers of float32 whose place the quantised form of ``rows`` activations takes: a byte each, and 16 for 32."""
    return rows * columns // GROUP * (GROUP + 16) // 4


def run_steps(steps: ctypes.Array, threads: int) -> None:
    """Do all ``steps``, an array of ``Step``, one after another."""
    _compiled()["run"](steps, len(steps), threads)


@cache
def available() -> bool:
    """Whether this machine can run these products: an x86 processor with AVX2, and torch on OpenMP."""
    return instructions() is not None and openmp() is not None


@cache
def instructions() -> str | None:
    """The fastest instruction set that this processor has, a key of ``SETS``."""
    import llvmlite.binding as llvm

    has = {name for name, present in llvm.get_host_cpu_features().items() if present}
    return next((name for name, kind in SETS.items() if kind.needs <= has), None)


@cache
def openmp() -> ctypes.CDLL | None:
    """The OpenMP library that torch has loaded: with another one, threads of two pools would wait for each other."""
    for path in (Path(torch.__file__).parent / "lib").glob("libgomp*"):
        return ctypes.CDLL(str(path))
    return None


@cache
def _compiled() -> dict[int | str, ctypes._CFuncPtr]:
    """The product by bits of the weights, and "run", which does steps."""
    if not available():
        raise RuntimeError("products of 4- to 8-bit weights need an x86 processor with AVX2 and torch built on OpenMP")
    return compiled(instructions())


@cache
def compiled(instruction_set: str) -> dict[int | str, ctypes._CFuncPtr]:
    """The products as one instruction set computes them; all give the same bits."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    for name in ("omp_get_thread_num", "omp_get_num_threads", "GOMP_parallel"):
        llvm.add_symbol(name, ctypes.cast(getattr(openmp(), name), ctypes.c_void_p).value)
    host = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    processor, features = host if instruction_set == "vnni512" else ("haswell", "")
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(cpu=processor, features=features, opt=3)
    module = _module(instruction_set)
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    _engines.append(engine)
    kind = ctypes.CFUNCTYPE(None, ctypes.POINTER(Arguments), ctypes.c_int32)
    run = ctypes.CFUNCTYPE(None, ctypes.POINTER(Step), ctypes.c_int64, ctypes.c_int32)
    products = {bits: kind(engine.get_function_address(f"multiply{bits}")) for bits in BITS}
    return products | {"run": run(engine.get_function_address("run"))}


_engines: list = []
"""Engines own the code that they compiled."""


def _module(instruction_set: str):
    import llvmlite.binding as llvm

    # The operands of vpdpbusd were vectors of int32 until LLVM 22.
    for operand in ("<64 x i8>", "<16 x i32>"):
        module = llvm.parse_assembly(assembly(instruction_set, operand))
        try:
            module.verify()
            return module
        except RuntimeError as error:
            problem = error
    raise problem
