"""The machine code of products with 4- and 8-bit weights, as LLVM assembly.

A weight matrix [N, K] is stored in tiles of 16 rows and groups of 32 columns: the 16 lanes of a vector are 16 outputs,
and each lane holds 4 neighbouring columns in its 4 bytes. ``dot4`` multiplies them with 4 activations, which all lanes
share, and adds the 4 products: one instruction where the processor has VNNI. Activations are 8-bit integers with one
scale for 32 of them, so the sum over a group is exact, and a row of the result does not depend on what other rows are
multiplied with it.
"""

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

``dot4`` takes codes of 0 to 15, ``dot8`` of 0 to 255; %x is the same 4 signed bytes 16 times.
"""
TILE, GROUP = 16, 32
"""Rows of the matrix that lie side by side, and columns that share a scale."""

ARGUMENTS = ("codes", "scales", "bias", "x", "integers", "y", "tiles", "columns", "width", "rows")
"""Fields of the structure that every function takes, pointers first: of the matrix [16 * tiles, columns], of the
activations x float32 [rows, columns], their quantised form, and the result y float32 [rows, width]."""

HEAD = """
%arguments = type { ptr, ptr, ptr, ptr, ptr, ptr, i64, i64, i64, i64 }
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()
declare void @GOMP_parallel(ptr, ptr, i32, i32)
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
declare <32 x float> @llvm.fabs.v32f32(<32 x float>)
declare <32 x float> @llvm.roundeven.v32f32(<32 x float>)
declare float @llvm.vector.reduce.fmax.v32f32(<32 x float>)
declare float @llvm.vector.reduce.fadd.v32f32(float, <32 x float>)
declare i32 @llvm.vector.reduce.add.v32i32(<32 x i32>)

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
  ; integers: int8 [rows, columns], then float32 [rows, groups] scales, then float32 [rows, groups] sums of the groups
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
  %total = call i32 @llvm.vector.reduce.add.v32i32(<32 x i32> %wide)
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


def assembly(instructions: str, operand512: str) -> str:
    """A module with ``multiply4`` and ``multiply8``, of (pointer to ARGUMENTS, int32 threads).

    ``instructions`` is a key of DOTS; ``operand512`` the type that this LLVM gives the operands of vpdpbusd.
    """
    block, dots = DOTS[instructions]
    parts = [
        HEAD,
        Template(dots).safe_substitute(operand512=operand512),
        Template(QUANTIZE).substitute(fields=_fields()),
    ]
    parts += [_tile(rows, bits) for bits in (4, 8) for rows in range(1, block + 1)]
    parts += [_product(block, bits) for bits in (4, 8)]
    return "\n".join(parts)


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
        "ptr %r_scales, ptr %r_sums, ptr %r_y, i64 %groups, i64 %columns, i64 %width)\n  br label %block_end"
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
        "ptr %x_scales, ptr %x_sums, ptr %y, i64 %groups, i64 %columns, i64 %width) alwaysinline {",
        "entry:\n  br label %loop\nloop:\n  %g = phi i64 [ 0, %entry ], [ %g_next, %loop ]",
        *(f"  %y{r} = phi <16 x float> [ %bias, %entry ], [ %y_next{r}, %loop ]" for r in range(rows)),
        f"  %codes_at = mul i64 %g, {64 * bits}\n  %scales_at = mul i64 %g, 64\n  %x_at = mul i64 %g, 32",
        "  %g_codes = getelementptr i8, ptr %codes, i64 %codes_at",
        "  %g_scales = getelementptr i8, ptr %scales, i64 %scales_at",
    ]
    for r in range(rows):
        lines.append(f"  %x_row{r} = mul i64 %columns, {r}\n  %x_begin{r} = add i64 %x_row{r}, %x_at")
        lines.append(f"  %x_group{r} = getelementptr i8, ptr %x_codes, i64 %x_begin{r}")
    sums = ["zeroinitializer"] * rows
    for step, (codes, load) in enumerate(_codes(bits)):
        lines += load
        for r in range(rows):
            name = f"{step}_{r}"
            lines.append(
                f"  %x_here{name} = getelementptr i8, ptr %x_group{r}, i64 {4 * step}\n"
                f"  %x_four{name} = load i32, ptr %x_here{name}, align 4\n"
                f"  %x_one{name} = insertelement <16 x i32> poison, i32 %x_four{name}, i64 0\n"
                f"  %x_all{name} = shufflevector <16 x i32> %x_one{name}, <16 x i32> poison, "
                "<16 x i32> zeroinitializer\n"
                f"  %x{name} = bitcast <16 x i32> %x_all{name} to <64 x i8>\n"
                f"  %sum{name} = call <16 x i32> @dot{bits}(<16 x i32> {sums[r]}, <64 x i8> {codes}, "
                f"<64 x i8> %x{name})"
            )
            sums[r] = f"%sum{name}"
    lines.append(
        "  %scale_half = load <16 x half>, ptr %g_scales, align 32\n"
        "  %minimum_here = getelementptr i8, ptr %g_scales, i64 32\n"
        "  %minimum_half = load <16 x half>, ptr %minimum_here, align 32\n"
        "  %scale = fpext <16 x half> %scale_half to <16 x float>\n"
        "  %minimum = fpext <16 x half> %minimum_half to <16 x float>"
    )
    for r in range(rows):
        lines.append(f"  %of_row{r} = mul i64 %groups, {r}\n  %of_group{r} = add i64 %of_row{r}, %g")
        for what in ("scale", "sum"):
            lines.append(
                f"  %{what}_here{r} = getelementptr float, ptr %x_{what}s, i64 %of_group{r}\n"
                f"  %{what}_x{r} = load float, ptr %{what}_here{r}, align 4\n"
                f"  %{what}_one{r} = insertelement <16 x float> poison, float %{what}_x{r}, i64 0\n"
                f"  %{what}_all{r} = shufflevector <16 x float> %{what}_one{r}, <16 x float> poison, "
                "<16 x i32> zeroinitializer"
            )
        lines.append(
            f"  %product{r} = sitofp <16 x i32> {sums[r]} to <16 x float>\n"
            f"  %both{r} = fmul <16 x float> %scale, %scale_all{r}\n"
            f"  %part{r} = call <16 x float> @llvm.fma.v16f32(<16 x float> %both{r}, <16 x float> %product{r}, "
            f"<16 x float> %y{r})\n"
            f"  %y_next{r} = call <16 x float> @llvm.fma.v16f32(<16 x float> %minimum, <16 x float> %sum_all{r}, "
            f"<16 x float> %part{r})"
        )
    lines.append("  %g_next = add i64 %g, 1\n  %more = icmp slt i64 %g_next, %groups")
    lines.append("  br i1 %more, label %loop, label %end\nend:")
    for r in range(rows):
        lines.append(f"  %y_row{r} = mul i64 %width, {r}\n  %y_here{r} = getelementptr float, ptr %y, i64 %y_row{r}")
        lines.append(f"  store <16 x float> %y_next{r}, ptr %y_here{r}, align 4")
    return "\n".join([*lines, "  ret void\n}"])


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
    return low + high
