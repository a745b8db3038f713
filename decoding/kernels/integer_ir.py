"""The machine code of products with 4-, 6- and 8-bit weights, as LLVM assembly: how threads share the work.

First the activations are quantised, then each thread computes its share of the tiles (``tile_ir``), a block of rows at
a time, so that a tile that many rows are multiplied with comes from memory once.
"""

from collections.abc import Iterable
from string import Template

from decoding.kernels.instruction_sets import SETS, InstructionSet
from decoding.kernels.tile_ir import MIDDLE, loops, name, tile

BITS = (4, 6, 8)
ARGUMENTS = ("codes", "scales", "bias", "x", "integers", "y", "tiles", "columns", "width", "rows")
"""Fields of the structure that every function takes, pointers first: of the matrix [16 * tiles, columns], of the
activations x float32 [rows, columns], their quantised form, and the result y float32 [rows, width]."""

HEAD = """
%arguments = type { ptr, ptr, ptr, ptr, ptr, ptr, i64, i64, i64, i64 }
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()
declare void @GOMP_parallel(ptr, ptr, i32, i32)
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
declare <8 x float> @llvm.fma.v8f32(<8 x float>, <8 x float>, <8 x float>)
declare <32 x float> @llvm.fabs.v32f32(<32 x float>)
declare <32 x float> @llvm.roundeven.v32f32(<32 x float>)
declare float @llvm.vector.reduce.fmax.v32f32(<32 x float>)
declare float @llvm.vector.reduce.fadd.v32f32(float, <32 x float>)
declare i32 @llvm.vector.reduce.add.v16i32(<16 x i32>)

define internal { i64, i64 } @share(i64 %work) alwaysinline {
  ; the part of %work items that this thread does
  %id32 = call i32 @omp_get_thread_num()
  %all32 = call i32 @omp_get_num_threads()
  %id = sext i32 %id32 to i64
  %all = sext i32 %all32 to i64
  %next = add i64 %id, 1
  %before = mul i64 %id, %work
  %after = mul i64 %next, %work
  %begin = udiv i64 %before, %all
  %end = udiv i64 %after, %all
  %one = insertvalue { i64, i64 } poison, i64 %begin, 0
  %both = insertvalue { i64, i64 } %one, i64 %end, 1
  ret { i64, i64 } %both
}
"""

QUANTIZE = """
define void @quantize(ptr %arguments) {
  ; integers: int8 [rows, columns], then [rows, groups] each: float32 scales, float32 sums of the groups, and two int32
  ; beginnings of the sums of a group's halves in 6 bits
entry:
$fields
  %groups = udiv i64 %columns, 32
  %work = mul i64 %rows, %groups
  %part = call { i64, i64 } @share(i64 %work)
  %begin = extractvalue { i64, i64 } %part, 0
  %end = extractvalue { i64, i64 } %part, 1
  %bytes = mul i64 %rows, %columns
  %scale_base = getelementptr i8, ptr %integers, i64 %bytes
  %sum_base = getelementptr float, ptr %scale_base, i64 %work
  %start_base = getelementptr float, ptr %sum_base, i64 %work
  %some = icmp slt i64 %begin, %end
  br i1 %some, label %loop, label %done
loop:
  %g = phi i64 [ %begin, %entry ], [ %g_next, %loop ]
  %first = mul i64 %g, 32
  %x_here = getelementptr float, ptr %x, i64 %first
  %v = load <32 x float>, ptr %x_here, align 4
  %a = call <32 x float> @llvm.fabs.v32f32(<32 x float> %v)
  %most = call nnan float @llvm.vector.reduce.fmax.v32f32(<32 x float> %a)
  ; NaN where an activation is NaN or infinite, so that it shows in the result; else 0
  %nothing = fmul <32 x float> %v, zeroinitializer
  %broken = call reassoc float @llvm.vector.reduce.fadd.v32f32(float 0.0, <32 x float> %nothing)
  %step = fdiv float %most, 1.27e2
  %scale = fadd float %step, %broken
  %usable = fcmp ogt float %scale, 0.0
  %inverse = fdiv float 1.0, %scale
  %factor = select i1 %usable, float %inverse, float 0.0
  %factor1 = insertelement <32 x float> poison, float %factor, i64 0
  %factors = shufflevector <32 x float> %factor1, <32 x float> poison, <32 x i32> zeroinitializer
  %number = fcmp ord <32 x float> %v, zeroinitializer
  %finite = select <32 x i1> %number, <32 x float> %v, <32 x float> zeroinitializer
  %scaled = fmul <32 x float> %finite, %factors
  %rounded = call <32 x float> @llvm.roundeven.v32f32(<32 x float> %scaled)
  %wide = fptosi <32 x float> %rounded to <32 x i32>
  %narrow = trunc <32 x i32> %wide to <32 x i8>
  %code_here = getelementptr i8, ptr %integers, i64 %first
  store <32 x i8> %narrow, ptr %code_here, align 4
  %half0 = shufflevector <32 x i32> %wide, <32 x i32> poison, <16 x i32> <$first>
  %half1 = shufflevector <32 x i32> %wide, <32 x i32> poison, <16 x i32> <$second>
  %total0 = call i32 @llvm.vector.reduce.add.v16i32(<16 x i32> %half0)
  %total1 = call i32 @llvm.vector.reduce.add.v16i32(<16 x i32> %half1)
  %start0 = mul i32 %total0, -$middle
  %start1 = mul i32 %total1, -$middle
  %start_here = getelementptr { i32, i32 }, ptr %start_base, i64 %g
  %start_next = getelementptr i32, ptr %start_here, i64 1
  store i32 %start0, ptr %start_here, align 4
  store i32 %start1, ptr %start_next, align 4
  %total = add i32 %total0, %total1
  %total_float = sitofp i32 %total to float
  %sum = fmul float %total_float, %scale
  %scale_here = getelementptr float, ptr %scale_base, i64 %g
  %sum_here = getelementptr float, ptr %sum_base, i64 %g
  store float %scale, ptr %scale_here, align 4
  store float %sum, ptr %sum_here, align 4
  %g_next = add i64 %g, 1
  %more = icmp slt i64 %g_next, %end
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""

PRODUCT = """
define void @product$bits(ptr %arguments) {
entry:
$fields
  %groups = udiv i64 %columns, 32
  %part = call { i64, i64 } @share(i64 %tiles)
  %begin = extractvalue { i64, i64 } %part, 0
  %end = extractvalue { i64, i64 } %part, 1
  %bytes = mul i64 %rows, %columns
  %scale_base = getelementptr i8, ptr %integers, i64 %bytes
  %work = mul i64 %rows, %groups
  %sum_base = getelementptr float, ptr %scale_base, i64 %work
  %start_base = getelementptr float, ptr %sum_base, i64 %work
  %some = icmp slt i64 %begin, %end
  br i1 %some, label %tile, label %done
tile:
  %t = phi i64 [ %begin, %entry ], [ %t_next, %tile_end ]
  %t_groups = mul i64 %t, %groups
  %codes_at = mul i64 %t_groups, $group_bytes
  %t_codes = getelementptr i8, ptr %codes, i64 %codes_at
  %scales_at = mul i64 %t_groups, 64
  %t_scales = getelementptr i8, ptr %scales, i64 %scales_at
  %column = mul i64 %t, 16
  %bias_here = getelementptr float, ptr %bias, i64 %column
  br label %block
block:
  %r = phi i64 [ 0, %tile ], [ %r_next, %block_end ]
  %left = sub i64 %rows, %r
  %r_bytes = mul i64 %r, %columns
  %r_codes = getelementptr i8, ptr %integers, i64 %r_bytes
  %r_groups = mul i64 %r, %groups
  %r_scales = getelementptr float, ptr %scale_base, i64 %r_groups
  %r_sums = getelementptr float, ptr %sum_base, i64 %r_groups
  %r_starts = getelementptr { i32, i32 }, ptr %start_base, i64 %r_groups
  %r_width = mul i64 %r, %width
  %y_at = add i64 %r_width, %column
  %r_y = getelementptr float, ptr %y, i64 %y_at
  switch i64 %left, label %rows$block [ $cases ]
$calls
block_end:
  %r_next = add i64 %r, $block
  %r_more = icmp slt i64 %r_next, %rows
  br i1 %r_more, label %block, label %tile_end
tile_end:
  %t_next = add i64 %t, 1
  %t_more = icmp slt i64 %t_next, %end
  br i1 %t_more, label %tile, label %done
done:
  ret void
}

define void @multiply$bits(ptr %arguments, i32 %threads) {
  ; a thread that waits for others costs more than quantising a few rows alone
$rows_only
  %few = icmp slt i64 %rows, 16
  br i1 %few, label %alone, label %together
alone:
  call void @quantize(ptr %arguments)
  br label %go
together:
  call void @GOMP_parallel(ptr @quantize, ptr %arguments, i32 %threads, i32 0)
  br label %go
go:
  call void @GOMP_parallel(ptr @product$bits, ptr %arguments, i32 %threads, i32 0)
  ret void
}
"""


SERIAL, PARALLEL, MULTIPLY = 0, 1, 2
"""Kinds of steps of ``run``: a function of its arguments, the same on every thread, and a product."""
RUN = """
%step = type { ptr, ptr, i64 }

define void @run(ptr %steps, i64 %n, i32 %threads) {
entry:
  %some = icmp sgt i64 %n, 0
  br i1 %some, label %loop, label %done
loop:
  %i = phi i64 [ 0, %entry ], [ %i_next, %next ]
  %function_at = getelementptr %step, ptr %steps, i64 %i, i32 0
  %arguments_at = getelementptr %step, ptr %steps, i64 %i, i32 1
  %kind_at = getelementptr %step, ptr %steps, i64 %i, i32 2
  %function = load ptr, ptr %function_at
  %arguments = load ptr, ptr %arguments_at
  %kind = load i64, ptr %kind_at
  switch i64 %kind, label %serial [ i64 $parallel, label %parallel i64 $product, label %product ]
serial:
  call void %function(ptr %arguments)
  br label %next
parallel:
  call void @GOMP_parallel(ptr %function, ptr %arguments, i32 %threads, i32 0)
  br label %next
product:
  call void %function(ptr %arguments, i32 %threads)
  br label %next
next:
  %i_next = add i64 %i, 1
  %more = icmp slt i64 %i_next, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""


def assembly(instructions: str, operand512: str) -> str:
    """A module with ``multiply4``, ``multiply6`` and ``multiply8``, of (pointer to ARGUMENTS, int32 threads).

    Also ``run`` of (pointer to steps of function, arguments and kind, int64 their number, int32 threads).

    ``instructions`` is a key of SETS; ``operand512`` the type that this LLVM gives the operands of vpdpbusd.
    """
    used = SETS[instructions]
    parts = [
        HEAD,
        Template(used.assembly).safe_substitute(operand512=operand512),
        Template(QUANTIZE).substitute(
            fields=_fields(), first=_lanes(range(16)), second=_lanes(range(16, 32)), middle=MIDDLE
        ),
    ]
    for bits in BITS:
        parts += [tile(rows, bits, used, own) for rows in range(1, used.block + 1) for own in loops(rows, used)]
        parts.append(_product(bits, used))
    parts.append(Template(RUN).substitute(parallel=PARALLEL, product=MULTIPLY))
    return "\n".join(parts)


def _lanes(numbers: Iterable[int]) -> str:
    return ", ".join(f"i32 {number}" for number in numbers)


def _fields(*names: str) -> str:
    """The named arguments, or all, read from the structure."""
    lines = []
    for i, field in enumerate(ARGUMENTS):
        if not names or field in names:
            lines.append(f"  %{field}_at_ = getelementptr %arguments, ptr %arguments, i32 0, i32 {i}")
            lines.append(f"  %{field} = load {'ptr' if i < 6 else 'i64'}, ptr %{field}_at_")
    return "\n".join(lines)


def _product(bits: int, used: InstructionSet) -> str:
    arguments = (
        "ptr %t_codes, ptr %t_scales, ptr %bias_here, ptr %r_codes, ptr %r_scales, ptr %r_sums, ptr %r_starts, "
        "ptr %r_y, i64 %groups, i64 %columns, i64 %width"
    )
    cases = [
        [f"rows{rows}:"]
        + [f"  call void @{name(rows, bits, parts)}({arguments})" for parts in loops(rows, used)]
        + ["  br label %block_end"]
        for rows in range(1, used.block + 1)
    ]
    return Template(PRODUCT).substitute(
        bits=bits,
        block=used.block,
        group_bytes=64 * bits,
        fields=_fields(),
        rows_only=_fields("rows"),
        cases=" ".join(f"i64 {rows}, label %rows{rows}" for rows in range(1, used.block)),
        calls="\n".join("\n".join(case) for case in cases),
    )
