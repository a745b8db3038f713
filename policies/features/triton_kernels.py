"""The statistics of a distribution in one pass over its logits on a GPU, in Triton: the features of ``distribution``.

``_read`` reads a part of a row once and leaves its moments and ten largest logits; ``_combine`` joins the parts. Sums
are float32 and relative to the largest logit of a part. With ``TRITON_INTERPRET=1`` both run on a CPU.
"""

from __future__ import annotations

from functools import cached_property

import torch
import triton
import triton.language as tl
from torch import Tensor

TOP = 10
PART = 4096  # logits of a program: a vocabulary of 128 k is 32 programs a row
LEAST = tl.constexpr(-200.0)  # exp is 0 there in float32: no 0 * -inf
STATE = 16  # numbers that a part leaves: maximum, sum, two moments, whether a logit is NaN; padded
COLUMNS = ("top1", "entropy", "varentropy", "top10_mass")


@triton.jit
def _best(x, at, values, indices, TOP: tl.constexpr):
    """Write the ``TOP`` largest of ``x``, descending, and the ids ``at`` that they are of; the lowest id first."""
    for i in tl.static_range(TOP):
        most = tl.max(x, 0)
        first = tl.min(tl.where(x == most, at, 2147483647), 0)
        tl.store(values + i, most)
        tl.store(indices + i, first)
        x = tl.where(at == first, float("-inf"), x)


@triton.jit
def _read(
    logits, stride, vocab, state, values, indices, parts, PART: tl.constexpr, TOP: tl.constexpr, STATE: tl.constexpr
):
    row, part = tl.program_id(0), tl.program_id(1)
    at = part * PART + tl.arange(0, PART)
    x = tl.load(logits + row.to(tl.int64) * stride + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
    nan = tl.max((x != x).to(tl.float32), 0)
    x = tl.where(x != x, float("-inf"), x)
    most = tl.max(x, 0)
    below = tl.maximum(x - tl.where(most == float("-inf"), 0.0, most), LEAST)
    weight = tl.exp(below)
    out = state + (row * parts + part) * STATE
    tl.store(out, most)
    tl.store(out + 1, tl.sum(weight, 0))
    tl.store(out + 2, tl.sum(weight * below, 0))
    tl.store(out + 3, tl.sum(weight * below * below, 0))
    tl.store(out + 4, nan)
    where = (row * parts + part) * TOP
    _best(x, at, values + where, indices + where, TOP)


@triton.jit
def _moments(state, row, parts, PARTS: tl.constexpr, STATE: tl.constexpr):
    """Of a row: its peak, the sums of w, w x and w x^2 with x below the peak and w = exp(x), and 0 or NaN if broken."""
    part = tl.arange(0, PARTS)
    known = part < parts
    where = state + (row * parts + part) * STATE
    peak = tl.load(where, mask=known, other=float("-inf"))
    most = tl.max(peak, 0)
    # A moment about the peak of a part becomes one about that of the row.
    apart = tl.maximum(peak - tl.where(most == float("-inf"), 0.0, most), LEAST)
    scale = tl.exp(apart)
    total = tl.load(where + 1, mask=known, other=0.0)
    first = tl.load(where + 2, mask=known, other=0.0)
    second = tl.load(where + 3, mask=known, other=0.0)
    broken = tl.max(tl.load(where + 4, mask=known, other=0.0), 0) > 0
    second = tl.sum(scale * (second + 2 * apart * first + apart * apart * total), 0)
    first = tl.sum(scale * (first + apart * total), 0)
    total = tl.sum(scale * total, 0)
    broken = broken | (most == float("-inf")) | (most == float("inf"))
    return most, total, first, second, tl.where(broken, float("nan"), 0.0)


@triton.jit
def _largest(values, indices, row, parts, PARTS: tl.constexpr, TOP: tl.constexpr):
    """The largest logits of each part of a row, and their ids."""
    place = tl.arange(0, PARTS * 16)
    inside = (place // 16 < parts) & (place % 16 < TOP)
    where = (row * parts + place // 16) * TOP + place % 16
    x = tl.load(values + where, mask=inside, other=float("-inf"))
    return x, tl.load(indices + where, mask=inside, other=2147483647)


@triton.jit
def _combine(
    state, values, indices, moments, tops, best, parts, PARTS: tl.constexpr, TOP: tl.constexpr, STATE: tl.constexpr
):
    row = tl.program_id(0)
    most, total, first, second, nan = _moments(state, row, parts, PARTS, STATE)
    mean = first / total
    out = moments + row * 4
    tl.store(out, 1.0 / total + nan)
    tl.store(out + 1, tl.log(total) - mean + nan)
    tl.store(out + 2, tl.maximum(second / total - mean * mean, 0.0) + nan)
    x, ids = _largest(values, indices, row, parts, PARTS, TOP)
    mass = 0.0
    for i in tl.static_range(TOP):
        peak_i = tl.max(x, 0)
        first_id = tl.min(tl.where(x == peak_i, ids, 2147483647), 0)
        share = tl.exp(tl.maximum(peak_i - tl.where(most == float("-inf"), 0.0, most), LEAST)) / total
        mass += share
        tl.store(tops + row * TOP + i, share + nan)
        if i == 0:
            tl.store(best + row, first_id.to(tl.int64))
        x = tl.where(ids == first_id, float("-inf"), x)
    tl.store(out + 3, mass + nan)


@torch.library.custom_op("policies::read_logits", mutates_args=())
def read_logits(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of ``logits`` [rows, vocab]: moments [rows, parts, STATE], largest [rows, parts, TOP] and their ids, by part."""
    rows, vocab = logits.shape
    parts = triton.cdiv(vocab, PART)
    state = torch.empty(rows, parts, STATE, device=logits.device)
    values = torch.empty(rows, parts, TOP, device=logits.device)
    indices = torch.empty(rows, parts, TOP, dtype=torch.int32, device=logits.device)
    _read[rows, parts](logits, logits.stride(0), vocab, state, values, indices, parts, PART, TOP, STATE)
    return state, values, indices


class KernelDistribution:
    """``Distribution`` of ``logits`` [..., vocab] by two launches; also ``argmax`` [...], the lowest if several."""

    def __init__(self, logits: Tensor):
        self.shape, self.logits = logits.shape[:-1], logits.reshape(-1, logits.shape[-1])

    @cached_property
    def _found(self) -> tuple[Tensor, Tensor, Tensor]:
        """Columns [rows, 4], the largest probabilities [rows, 10], the best token [rows]."""
        logits = self.logits if self.logits.stride(-1) == 1 else self.logits.contiguous()
        state, values, indices = read_logits(logits)
        rows, parts, _ = state.shape
        new = lambda *size, dtype=torch.float32: torch.empty(size, dtype=dtype, device=state.device)  # noqa: E731
        columns, tops, best = new(rows, 4), new(rows, TOP), new(rows, dtype=torch.int64)
        sizes = triton.next_power_of_2(parts), TOP, STATE
        _combine[(rows,)](state, values, indices, columns, tops, best, parts, *sizes)
        return columns, tops, best

    def __getattr__(self, name: str) -> Tensor:
        if name not in COLUMNS:
            raise AttributeError(name)
        return self._found[0][:, COLUMNS.index(name)].view(self.shape)

    @property
    def top(self) -> Tensor:
        """[..., 10] largest probabilities, descending; fewer in a smaller vocabulary."""
        few = min(TOP, self.logits.shape[-1])
        return self._found[1][:, :few].view(*self.shape, few)

    @property
    def argmax(self) -> Tensor:
        return self._found[2].view(self.shape)
