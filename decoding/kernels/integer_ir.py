"""The machine code of products with 4-, 6- and 8-bit weights, as LLVM assembly.

A weight matrix [N, K] is stored in tiles of 16 rows and groups of 32 columns: the 16 lanes of a vector are 16 outputs,
and each lane holds 4 neighbouring columns in its 4 bytes. ``dot4`` multiplies them with 4 activations, which all lanes
share, and adds the 4 products: one instruction where the processor has VNNI. Activations are 8-bit integers with one
scale for 32 of them, so the sum over a group is exact, and a row of the result does not depend on what other rows are
multiplied with it.

With 4 and 8 bits w = scale * code + minimum, one of each for a group. With 6 bits w = scale * (code - 32), with a scale
for each half of a group: what is subtracted, 32 times the sum of the activations, is where the sum begins.
"""

from collections.abc import Iterable
from string import Template

DOTS = {
    "vnni512": (
        8,
        """
declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, $operand512, $operand512)
define internal <16 x i32> @dot4(<16 x i32> %sum, <64 x i8> %codes, <64 x i8> %x) alwaysinline {
  %u = bitcast <64 x i8> %codes to $operand512
  %s = bitcast <64 x i8> %x to $operand512
  %r = call <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32> %sum, $operand512 %u, $operand512 %s)
  ret <16 x i32> %r
}
define internal <16 x i32> @dot8(<16 x i32> %sum, <64 x i8> %codes, <64 x i8> %x) alwaysinline {
  %r = call <16 x i32> @dot4(<16 x i32> %sum, <64 x i8> %codes, <64 x i8> %x)
  ret <16 x i32> %r
}
""",
    ),
    "avx2": (
        2,
        """
declare <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8>, <32 x i8>)
declare <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16>, <16 x i16>)
declare <32 x i8> @llvm.x86.avx2.psign.b(<32 x i8>, <32 x i8>)
declare <32 x i8> @llvm.abs.v32i8(<32 x i8>, i1)
define internal <8 x i32> @pairs(<32 x i8> %u, <32 x i8> %s) alwaysinline {
  %two = call <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8> %u, <32 x i8> %s)
  %four = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %two, <16 x i16> splat (i16 1))
  ret <8 x i32> %four
}
define internal <8 x i32> @signed(<32 x i8> %u, <32 x i8> %s) alwaysinline {
  ; 255 * 127 * 2 does not fit 16 bits: (u - 128) * s + 128 * s does, part by part
  %c = xor <32 x i8> %u, splat (i8 -128)
  %a = call <32 x i8> @llvm.abs.v32i8(<32 x i8> %c, i1 false)
  %b = call <32 x i8> @llvm.x86.avx2.psign.b(<32 x i8> %s, <32 x i8> %c)
  %p = call <8 x i32> @pairs(<32 x i8> %a, <32 x i8> %b)
  %q = call <8 x i32> @pairs(<32 x i8> splat (i8 -128), <32 x i8> %s)
  %r = add <8 x i32> %p, %q
  ret <8 x i32> %r
}
"""
        + "".join(
            f"""
define internal <16 x i32> @{name}(<16 x i32> %sum, <64 x i8> %codes, <64 x i8> %x) alwaysinline {{
  %u0 = shufflevector <64 x i8> %codes, <64 x i8> poison, <32 x i32> <{", ".join(f"i32 {i}" for i in range(32))}>
  %u1 = shufflevector <64 x i8> %codes, <64 x i8> poison, <32 x i32> <{", ".join(f"i32 {i}" for i in range(32, 64))}>
  %s0 = shufflevector <64 x i8> %x, <64 x i8> poison, <32 x i32> <{", ".join(f"i32 {i}" for i in range(32))}>
  %p0 = call <8 x i32> @{half}(<32 x i8> %u0, <32 x i8> %s0)
  %p1 = call <8 x i32> @{half}(<32 x i8> %u1, <32 x i8> %s0)
  %p = shufflevector <8 x i32> %p0, <8 x i32> %p1, <16 x i32> <{", ".join(f"i32 {i}" for i in range(16))}>
  %r = add <16 x i32> %sum, %p
  ret <16 x i32> %r
}}
"""
            for name, half in (("dot4", "pairs"), ("dot8", "signed"))
        ),
    ),
}
"""By instruction set: rows multiplied at once, as many as its registers hold, and the two dot products.

``dot4`` takes codes of 0 to 127, ``dot8`` of 0 to 255; %x is the same 4 signed bytes 16 times.
"""
BITS = (4, 6, 8)
TILE, GROUP = 16, 32
"""Rows of the matrix that lie side by side, and columns that lie together."""
AHEAD = 4096
"""Bytes of codes from here to what is prefetched: processors stop at the end of a page, and look less far. Without it
all matrices of a 1.5B model took 1.4 times as long on a Xeon; 2048 to 16384 are alike."""
MIDDLE = 32
"""The code that stands for 0 where a code has 6 bits."""

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
  %t_bias = load <16 x float>, ptr %bias_here, align 4
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

    ``instructions`` is a key of DOTS; ``operand512`` the type that this LLVM gives the operands of vpdpbusd.
    """
    block, dots = DOTS[instructions]
    parts = [
        HEAD,
        Template(dots).safe_substitute(operand512=operand512),
        Template(QUANTIZE).substitute(
            fields=_fields(), first=_lanes(range(16)), second=_lanes(range(16, 32)), middle=MIDDLE
        ),
    ]
    parts += [_tile(rows, bits) for bits in BITS for rows in range(1, block + 1)]
    parts += [_product(block, bits) for bits in BITS]
    parts.append(Template(RUN).substitute(parallel=PARALLEL, product=MULTIPLY))
    return "\n".join(parts)


def _lanes(numbers: Iterable[int]) -> str:
    return ", ".join(f"i32 {number}" for number in numbers)


def _fields(*names: str) -> str:
    """The named arguments, or all, read from the structure."""
    lines = []
    for i, name in enumerate(ARGUMENTS):
        if not names or name in names:
            lines.append(f"  %{name}_at_ = getelementptr %arguments, ptr %arguments, i32 0, i32 {i}")
            lines.append(f"  %{name} = load {'ptr' if i < 6 else 'i64'}, ptr %{name}_at_")
    return "\n".join(lines)


def _product(block: int, bits: int) -> str:
    call = (
        "rows{0}:\n  call void @tile{0}_{1}(ptr %t_codes, ptr %t_scales, <16 x float> %t_bias, ptr %r_codes, "
        "ptr %r_scales, ptr %r_sums, ptr %r_starts, ptr %r_y, i64 %groups, i64 %columns, i64 %width)\n"
        "  br label %block_end"
    )
    return Template(PRODUCT).substitute(
        bits=bits,
        block=block,
        group_bytes=64 * bits,
        fields=_fields(),
        rows_only=_fields("rows"),
        cases=" ".join(f"i64 {rows}, label %rows{rows}" for rows in range(1, block)),
        calls="\n".join(call.format(rows, bits) for rows in range(1, block + 1)),
    )


def _tile(rows: int, bits: int) -> str:
    """16 outputs of ``rows`` activations: a loop over the groups of one tile, all rows unrolled."""
    lines = [
        f"define internal void @tile{rows}_{bits}(ptr %codes, ptr %scales, <16 x float> %bias, ptr %x_codes, "
        "ptr %x_scales, ptr %x_sums, ptr %x_starts, ptr %y, i64 %groups, i64 %columns, i64 %width) alwaysinline {",
        "entry:\n  br label %loop\nloop:\n  %g = phi i64 [ 0, %entry ], [ %g_next, %loop ]",
        *(f"  %y{r} = phi <16 x float> [ %bias, %entry ], [ %y_next{r}, %loop ]" for r in range(rows)),
        f"  %codes_at = mul i64 %g, {64 * bits}\n  %scales_at = mul i64 %g, 64\n  %x_at = mul i64 %g, 32",
        "  %g_codes = getelementptr i8, ptr %codes, i64 %codes_at",
        "  %g_scales = getelementptr i8, ptr %scales, i64 %scales_at",
    ]
    for r in range(rows):
        lines.append(f"  %x_row{r} = mul i64 %columns, {r}\n  %x_begin{r} = add i64 %x_row{r}, %x_at")
        lines.append(f"  %x_group{r} = getelementptr i8, ptr %x_codes, i64 %x_begin{r}")
    for base, size, ahead in (("g_codes", 64 * bits, AHEAD), ("g_scales", 64, AHEAD // bits)):
        for at in range(ahead, ahead + size, 64):
            lines.append(f"  %{base}{at} = getelementptr i8, ptr %{base}, i64 {at}")
            lines.append(f"  call void @llvm.prefetch.p0(ptr %{base}{at}, i32 0, i32 3, i32 1)")
    for r in range(rows):
        lines.append(f"  %of_row{r} = mul i64 %groups, {r}\n  %of_group{r} = add i64 %of_row{r}, %g")
        lines += _shared(f"scale_x{r}", "float", "x_scales", f"%of_group{r}")
    for name, at in (("first", 0), ("second", 32)):
        lines.append(
            f"  %{name}_here = getelementptr i8, ptr %g_scales, i64 {at}\n"
            f"  %{name}_half = load <16 x half>, ptr %{name}_here, align 32\n"
            f"  %{name} = fpext <16 x half> %{name}_half to <16 x float>"
        )
    steps, y = _codes(bits), [f"%y{r}" for r in range(rows)]
    if bits == 6:
        for half, scale in enumerate(("first", "second")):
            starts = []
            for r in range(rows):
                lines.append(f"  %start_at{half}_{r} = shl i64 %of_group{r}, 1")
                lines.append(f"  %start_of{half}_{r} = or i64 %start_at{half}_{r}, {half}")
                lines += _shared(f"start{half}_{r}", "i32", "x_starts", f"%start_of{half}_{r}")
                starts.append(f"%start{half}_{r}")
            sums = _dots(lines, bits, steps[4 * half : 4 * half + 4], 4 * half, starts)
            y = _added(lines, scale, sums, y, "y_next" if half else "y_half")
    else:
        sums = _dots(lines, bits, steps, 0, ["zeroinitializer"] * rows)
        y = _added(lines, "first", sums, y, "y_part")
        for r in range(rows):
            lines += _shared(f"sum_x{r}", "float", "x_sums", f"%of_group{r}")
            lines.append(
                f"  %y_next{r} = call <16 x float> @llvm.fma.v16f32(<16 x float> %second, <16 x float> %sum_x{r}, "
                f"<16 x float> {y[r]})"
            )
    lines.append("  %g_next = add i64 %g, 1\n  %more = icmp slt i64 %g_next, %groups")
    lines.append("  br i1 %more, label %loop, label %end\nend:")
    for r in range(rows):
        lines.append(f"  %y_row{r} = mul i64 %width, {r}\n  %y_here{r} = getelementptr float, ptr %y, i64 %y_row{r}")
        lines.append(f"  store <16 x float> %y_next{r}, ptr %y_here{r}, align 4")
    return "\n".join([*lines, "  ret void\n}"])


def _shared(name: str, kind: str, base: str, index: str) -> list[str]:
    """One number of a row of activations, for all 16 lanes."""
    return [
        f"  %{name}_here = getelementptr {kind}, ptr %{base}, i64 {index}\n"
        f"  %{name}_one = load {kind}, ptr %{name}_here, align 4\n"
        f"  %{name}_lane = insertelement <16 x {kind}> poison, {kind} %{name}_one, i64 0\n"
        f"  %{name} = shufflevector <16 x {kind}> %{name}_lane, <16 x {kind}> poison, <16 x i32> zeroinitializer"
    ]


def _dots(lines: list[str], bits: int, steps: list[tuple[str, list[str]]], begin: int, sums: list[str]) -> list[str]:
    """``sums``, one a row, plus the products of ``steps``, of which the first is number ``begin`` of its group."""
    for step, (codes, load) in enumerate(steps, begin):
        lines += load
        for r in range(len(sums)):
            name = f"{step}_{r}"
            lines += [f"  %at{name} = getelementptr i8, ptr %x_group{r}, i64 {4 * step}"]
            lines += _shared(f"four{name}", "i32", f"at{name}", "0")
            lines.append(
                f"  %x{name} = bitcast <16 x i32> %four{name} to <64 x i8>\n"
                f"  %sum{name} = call <16 x i32> @dot{8 if bits == 8 else 4}(<16 x i32> {sums[r]}, "
                f"<64 x i8> {codes}, <64 x i8> %x{name})"
            )
        sums = [f"%sum{step}_{r}" for r in range(len(sums))]
    return sums


def _added(lines: list[str], scale: str, sums: list[str], y: list[str], name: str) -> list[str]:
    """``y`` plus the ``sums`` of integers times the scales of weights and activations, one a row."""
    for r, (one, before) in enumerate(zip(sums, y, strict=True)):
        lines.append(
            f"  %float_{name}{r} = sitofp <16 x i32> {one} to <16 x float>\n"
            f"  %both_{name}{r} = fmul <16 x float> %{scale}, %scale_x{r}\n"
            f"  %{name}{r} = call <16 x float> @llvm.fma.v16f32(<16 x float> %both_{name}{r}, "
            f"<16 x float> %float_{name}{r}, <16 x float> {before})"
        )
    return [f"%{name}{r}" for r in range(len(y))]


def _codes(bits: int) -> list[tuple[str, list[str]]]:
    """For each 4 columns of a group in order: the register of their codes, and the lines that fill it."""
    loads = [
        f"  %stored_at{i} = getelementptr i8, ptr %g_codes, i64 {64 * i}\n"
        f"  %stored{i} = load <64 x i8>, ptr %stored_at{i}, align 64"
        for i in range(bits)
    ]
    if bits == 8:
        return [(f"%stored{i}", [loads[i]]) for i in range(8)]
    # A byte holds a code of columns 4 i to 4 i + 3 in its low half, one of 16 columns later in its high half.
    low = [(f"%low{i}", [loads[i], f"  %low{i} = and <64 x i8> %stored{i}, splat (i8 15)"]) for i in range(4)]
    high = [(f"%high{i}", [f"  %high{i} = lshr <64 x i8> %stored{i}, splat (i8 4)"]) for i in range(4)]
    if bits == 4:
        return low + high
    # The other 2 bits of those codes are bits 2 i and 2 i + 1 of a byte, of the low halves first.
    steps = []
    for step, (codes, load) in enumerate(low + high):
        which, i = 4 + step // 4, step % 4
        name, shift = f"%upper{step}", ("shl", "shl", "shl", "lshr")[i]
        steps.append(
            (
                f"%code{step}",
                [
                    *([loads[which]] if i == 0 else []),
                    *load,
                    f"  {name}_bits = {shift} <64 x i8> %stored{which}, splat (i8 {abs(4 - 2 * i)})",
                    f"  {name} = and <64 x i8> {name}_bits, splat (i8 48)",
                    f"  %code{step} = or <64 x i8> {codes}, {name}",
                ],
            )
        )
    return steps
