"""The inner loop of products with 4-, 6- and 8-bit weights: outputs of one tile for a few rows, as LLVM assembly.

A weight matrix [N, K] is stored in tiles of 16 rows and groups of 32 columns: the 16 lanes of a vector are 16 outputs,
and each lane holds 4 neighbouring columns in its 4 bytes. They are multiplied with 4 activations, which all lanes
share, and the 4 products added. Activations are 8-bit integers with one scale for 32 of them, so the sum over a group
is exact, and a row of the result does not depend on what other rows are multiplied with it.

With 4 and 8 bits w = scale * code + minimum, one of each for a group. With 6 bits w = scale * (code - 32), with a scale
for each half of a group: what is subtracted, 32 times the sum of the activations, is where the sum begins.
"""

from decoding.kernels.instruction_sets import InstructionSet

TILE, GROUP = 16, 32
"""Rows of the matrix that lie side by side, and columns that lie together."""
AHEAD = 4096
"""Bytes of codes from here to what is prefetched: processors stop at the end of a page, and look less far. Without it
all matrices of a 1.5B model took 1.4 times as long on a Xeon; 2048 to 16384 are alike."""
MIDDLE = 32
"""The code that stands for 0 where a code has 6 bits."""
PARAMETERS = (
    "ptr %codes, ptr %scales, ptr %bias, ptr %x_codes, ptr %x_scales, ptr %x_sums, ptr %x_starts, ptr %y, "
    "i64 %groups, i64 %columns, i64 %width"
)


def loops(rows: int, used: InstructionSet) -> list[range]:
    """By the loop over groups in which they are summed: the registers that hold the outputs of a tile."""
    parts = range(TILE // used.lanes)
    return [parts] if rows <= used.whole else [parts[i : i + 1] for i in parts]


def name(rows: int, bits: int, parts: range) -> str:
    """The function that computes the ``parts`` of a tile's outputs for ``rows`` rows."""
    return f"tile{rows}_{bits}_{parts[0]}"


def tile(rows: int, bits: int, used: InstructionSet, parts: range) -> str:
    """The function ``name`` of PARAMETERS: a loop over the groups of a tile, all rows unrolled."""
    return _Loop(rows, bits, used, parts).text()


class _Loop:
    """Values of which each row has one end with its number; of which each row and part has one, with both."""

    def __init__(self, rows: int, bits: int, used: InstructionSet, parts: range):
        self.rows, self.bits, self.used, self.parts = range(rows), bits, used, parts
        self.name = name(rows, bits, parts)
        self.each = [(r, p) for r in self.rows for p in parts]
        lanes = used.lanes
        self.integers, self.floats = f"<{lanes} x i32>", f"<{lanes} x float>"
        self.bytes, self.shorts = f"<{4 * lanes} x i8>", f"<{2 * lanes} x i16>"
        self.lines: list[str] = []

    def text(self) -> str:
        self.put(f"define internal void @{self.name}({PARAMETERS}) alwaysinline {{\nentry:")
        for p in self.parts:
            self.load(f"bias{p}", self.floats, "bias", 4 * self.used.lanes * p, 4)
        self.put("  br label %loop\nloop:\n  %g = phi i64 [ 0, %entry ], [ %g_next, %loop ]")
        for r, p in self.each:
            self.put(f"  %y{r}_{p} = phi {self.floats} [ %bias{p}, %entry ], [ %y_next{r}_{p}, %loop ]")
        self.begin_group()
        steps, y = self.codes(), {(r, p): f"%y{r}_{p}" for r, p in self.each}
        if self.bits == 6:
            y = self.added("first", self.dots(steps[:4], self.starts(0)), y, "y_half")
            self.added("second", self.dots(steps[4:], self.starts(1)), y, "y_next")
        else:
            y = self.added("first", self.dots(steps, self.starts(None)), y, "y_part")
            for r in self.rows:
                self.shared(f"sum_x{r}", "float", "x_sums", f"%of_group{r}")
            for r, p in self.each:
                self.fma(f"y_next{r}_{p}", f"%second{p}", f"%sum_x{r}", y[r, p])
        self.put("  %g_next = add i64 %g, 1\n  %more = icmp slt i64 %g_next, %groups")
        self.put("  br i1 %more, label %loop, label %end\nend:")
        for r in self.rows:
            self.put(f"  %y_row{r} = mul i64 %width, {r}")
            for p in self.parts:
                self.put(f"  %y_at{r}_{p} = add i64 %y_row{r}, {self.used.lanes * p}")
                self.put(f"  %y_here{r}_{p} = getelementptr float, ptr %y, i64 %y_at{r}_{p}")
                self.put(f"  store {self.floats} %y_next{r}_{p}, ptr %y_here{r}_{p}, align 4")
        return "\n".join([*self.lines, "  ret void\n}"])

    def put(self, line: str) -> None:
        self.lines.append(line)

    def load(self, name: str, kind: str, base: str, at: int, align: int) -> None:
        self.put(f"  %{name}_here = getelementptr i8, ptr %{base}, i64 {at}")
        self.put(f"  %{name} = load {kind}, ptr %{name}_here, align {align}")

    def shared(self, name: str, kind: str, base: str, index: str) -> None:
        """One number of a row of activations, for all lanes."""
        vector = f"<{self.used.lanes} x {kind}>"
        self.put(f"  %{name}_here = getelementptr {kind}, ptr %{base}, i64 {index}")
        self.put(f"  %{name}_one = load {kind}, ptr %{name}_here, align 4")
        self.put(f"  %{name}_lane = insertelement {vector} poison, {kind} %{name}_one, i64 0")
        zeros = f"<{self.used.lanes} x i32> zeroinitializer"
        self.put(f"  %{name} = shufflevector {vector} %{name}_lane, {vector} poison, {zeros}")

    def fma(self, name: str, a: str, b: str, c: str) -> None:
        call = f"call {self.floats} @llvm.fma.v{self.used.lanes}f32"
        self.put(f"  %{name} = {call}({self.floats} {a}, {self.floats} {b}, {self.floats} {c})")

    def begin_group(self) -> None:
        """Where its codes, its activations and their scales are, and the scales of its weights."""
        self.put(f"  %codes_at = mul i64 %g, {64 * self.bits}\n  %scales_at = mul i64 %g, 64\n  %x_at = mul i64 %g, 32")
        self.put("  %g_codes = getelementptr i8, ptr %codes, i64 %codes_at")
        self.put("  %g_scales = getelementptr i8, ptr %scales, i64 %scales_at")
        if 0 in self.parts:
            for base, size, ahead in (("g_codes", 64 * self.bits, AHEAD), ("g_scales", 64, AHEAD // self.bits)):
                for at in range(ahead, ahead + size, 64):
                    self.put(f"  %{base}{at} = getelementptr i8, ptr %{base}, i64 {at}")
                    self.put(f"  call void @llvm.prefetch.p0(ptr %{base}{at}, i32 0, i32 3, i32 1)")
        for r in self.rows:
            self.put(f"  %x_row{r} = mul i64 %columns, {r}\n  %x_begin{r} = add i64 %x_row{r}, %x_at")
            self.put(f"  %x_group{r} = getelementptr i8, ptr %x_codes, i64 %x_begin{r}")
            self.put(f"  %of_row{r} = mul i64 %groups, {r}\n  %of_group{r} = add i64 %of_row{r}, %g")
            self.shared(f"scale_x{r}", "float", "x_scales", f"%of_group{r}")
        halves, lanes = f"<{self.used.lanes} x half>", self.used.lanes
        for p in self.parts:
            for which, at in (("first", 0), ("second", 2 * TILE)):
                self.load(f"{which}_half{p}", halves, "g_scales", at + 2 * lanes * p, 2 * lanes)
                self.put(f"  %{which}{p} = fpext {halves} %{which}_half{p} to {self.floats}")

    def starts(self, half: int | None) -> list[str]:
        """By row, where the sum of a half of the group begins, or of all of it."""
        if self.bits == 6:
            self.load_starts(half)
            return [f"%start{half}_{r}" for r in self.rows]
        if self.bits == 4 or not self.used.middle:
            return ["zeroinitializer" for _ in self.rows]
        self.load_starts(0)
        self.load_starts(1)
        for r in self.rows:
            self.put(f"  %halves{r} = add {self.integers} %start0_{r}, %start1_{r}")
            self.put(f"  %start{r} = mul {self.integers} %halves{r}, splat (i32 {-self.used.middle // MIDDLE})")
        return [f"%start{r}" for r in self.rows]

    def load_starts(self, half: int) -> None:
        """-MIDDLE times the sum of the activations in a half of the group."""
        for r in self.rows:
            self.put(f"  %start_pair{half}_{r} = shl i64 %of_group{r}, 1")
            self.put(f"  %start_at{half}_{r} = or i64 %start_pair{half}_{r}, {half}")
            self.shared(f"start{half}_{r}", "i32", "x_starts", f"%start_at{half}_{r}")

    def dots(self, steps: list[tuple[int, str]], starts: list[str]) -> dict[tuple[int, int], str]:
        """By row and part, ``starts`` plus the products of ``steps`` (``codes``)."""
        sums = {(r, p): starts[r] for r, p in self.each}
        open_for = self.used.open_for and self.used.open_for[self.bits]
        pairs: dict[tuple[int, int], str] = {}  # sums in 16 bits that are open
        for done, (step, fill) in enumerate(steps, 1):
            for p in self.parts:
                self.put(fill.replace("#", str(p)))
            for r in self.rows:
                self.put(f"  %at{step}_{r} = getelementptr i8, ptr %x_group{r}, i64 {4 * step}")
                self.shared(f"four{step}_{r}", "i32", f"at{step}_{r}", "0")
                self.put(f"  %x{step}_{r} = bitcast {self.integers} %four{step}_{r} to {self.bytes}")
            for r, p in self.each:
                both, end = f"{self.bytes} %code{step}_{p}, {self.bytes} %x{step}_{r}", f"{step}_{r}_{p}"
                if open_for is None:
                    self.put(f"  %sum{end} = call {self.integers} @dot({self.integers} {sums[r, p]}, {both})")
                    sums[r, p] = f"%sum{end}"
                    continue
                signed = "signed_" if self.bits == 8 else ""
                self.put(f"  %pairs{end} = call {self.shorts} @{signed}pairs({both})")
                if (r, p) in pairs:
                    self.put(f"  %more{end} = add {self.shorts} {pairs[r, p]}, %pairs{end}")
                pairs[r, p] = f"%more{end}" if (r, p) in pairs else f"%pairs{end}"
                if done % open_for == 0:
                    open_ = f"{self.shorts} {pairs.pop((r, p))}"
                    self.put(f"  %sum{end} = call {self.integers} @closed({self.integers} {sums[r, p]}, {open_})")
                    sums[r, p] = f"%sum{end}"
        return sums

    def added(self, scale: str, sums: dict, y: dict, name: str) -> dict[tuple[int, int], str]:
        """``y`` plus the ``sums`` of integers times the scales of weights and activations."""
        for r, p in self.each:
            end = f"{name}{r}_{p}"
            self.put(f"  %float_{end} = sitofp {self.integers} {sums[r, p]} to {self.floats}")
            self.put(f"  %both_{end} = fmul {self.floats} %{scale}{p}, %scale_x{r}")
            self.fma(end, f"%both_{end}", f"%float_{end}", y[r, p])
        return {(r, p): f"%{name}{r}_{p}" for r, p in self.each}

    def codes(self) -> list[tuple[int, str]]:
        """For each 4 columns of a group: their place in it, and lines that fill ``%code{place}_#`` for part #."""
        n, size = self.bytes, 4 * self.used.lanes
        for i in range(self.bits):
            for p in self.parts:
                self.load(f"stored{i}_{p}", n, "g_codes", 64 * i + size * p, size)
        if self.bits == 8:  # as stored: LLVM drops the xor, which only gives the codes their name
            return [(i, f"  %code{i}_# = xor {n} %stored{i}_#, zeroinitializer") for i in range(8)]
        # A byte holds a code of columns 4 i to 4 i + 3 in its low half, one of 16 columns later in its high half.
        name = "code" if self.bits == 4 else "part"
        low = [(i, f"  %{name}{i}_# = and {n} %stored{i}_#, splat (i8 15)") for i in range(4)]
        high = [(4 + i, f"  %{name}{4 + i}_# = lshr {n} %stored{i}_#, splat (i8 4)") for i in range(4)]
        if self.bits == 4:  # both halves of a byte at once: what waits takes registers
            return [step for both in zip(low, high, strict=True) for step in both]
        # The other 2 bits of those codes are bits 2 i and 2 i + 1 of a byte, of the low halves first.
        return [
            (
                step,
                f"{fill}\n"
                f"  %bits{step}_# = {'lshr' if step % 4 == 3 else 'shl'} {n} %stored{4 + step // 4}_#, "
                f"splat (i8 {abs(4 - 2 * (step % 4))})\n"
                f"  %upper{step}_# = and {n} %bits{step}_#, splat (i8 48)\n"
                f"  %code{step}_# = or {n} %part{step}_#, %upper{step}_#",
            )
            for step, fill in low + high
        ]
