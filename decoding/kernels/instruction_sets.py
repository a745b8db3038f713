"""Dot products of 8-bit integers in each processor's own instructions, as LLVM assembly.

An operand holds 4 neighbouring columns in each of its 32-bit lanes. Codes of weights are unsigned, activations signed.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class InstructionSet:
    """The integer dot products of one kind of processor.

    ``dot`` adds the 4 products of each lane to a sum in 32 bits. A processor without such an instruction has ``pairs``,
    sums of 2 products in 16 bits, and ``closed``, which adds a lane's two sums to a sum in 32 bits. ``open_for`` says
    by bits of the codes for how many steps the 16 bits hold.
    """

    needs: frozenset[str]
    """features of the processor"""
    lanes: int
    """of a register"""
    block: int
    """rows multiplied at once, as many as its registers hold"""
    whole: int
    """rows up to which a tile is read once, and not once for each register of outputs"""
    assembly: str
    open_for: dict[int, int] | None = None
    """None with ``dot``"""
    middle: int = 0
    """subtracted from codes of 8 bits, whose products would not fit else; the sum begins with as much more"""


VNNI = InstructionSet(
    needs=frozenset({"avx512f", "avx512bw", "avx512vnni"}),
    lanes=16,
    block=8,
    whole=8,
    assembly="""
declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, $operand512, $operand512)
define internal <16 x i32> @dot(<16 x i32> %sum, <64 x i8> %codes, <64 x i8> %x) alwaysinline {
  %u = bitcast <64 x i8> %codes to $operand512
  %s = bitcast <64 x i8> %x to $operand512
  %r = call <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32> %sum, $operand512 %u, $operand512 %s)
  ret <16 x i32> %r
}
""",
)
AVX2 = InstructionSet(
    needs=frozenset({"avx2", "fma", "f16c"}),
    lanes=8,
    block=4,
    whole=2,
    assembly="""
declare <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8>, <32 x i8>)
declare <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16>, <16 x i16>)
declare <32 x i8> @llvm.x86.avx2.psign.b(<32 x i8>, <32 x i8>)
declare <32 x i8> @llvm.abs.v32i8(<32 x i8>, i1)
define internal <16 x i16> @pairs(<32 x i8> %codes, <32 x i8> %x) alwaysinline {
  %p = call <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8> %codes, <32 x i8> %x)
  ret <16 x i16> %p
}
define internal <16 x i16> @signed_pairs(<32 x i8> %codes, <32 x i8> %x) alwaysinline {
  ; of codes less 128, by absolute values: at most 128 * 127 * 2
  %c = xor <32 x i8> %codes, splat (i8 -128)
  %u = call <32 x i8> @llvm.abs.v32i8(<32 x i8> %c, i1 false)
  %s = call <32 x i8> @llvm.x86.avx2.psign.b(<32 x i8> %x, <32 x i8> %c)
  %p = call <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8> %u, <32 x i8> %s)
  ret <16 x i16> %p
}
define internal <8 x i32> @closed(<8 x i32> %sum, <16 x i16> %pairs) alwaysinline {
  %four = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %pairs, <16 x i16> splat (i16 1))
  %r = add <8 x i32> %sum, %four
  ret <8 x i32> %r
}
""",
    open_for={4: 8, 6: 2, 8: 1},  # 8 * 2 * 15 * 127, 2 * 2 * 63 * 127 and 2 * 128 * 127 are below 2**15
    middle=128,
)
SETS = {"vnni512": VNNI, "avx2": AVX2}
"""The fastest first."""
