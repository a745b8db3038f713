"""A whole decision on a GPU in two launches: ``read_logits`` over the vocabulary, then ``decide`` over the rows.

``numba_kernels`` computes the same features on the CPU, by the same plan: its codes are places in ``fast_path.CODES``.
Both launches are operators of torch, so that a recording holds them like any other operation.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from policies.features.triton_kernels import LEAST, STATE, TOP, _largest, _moments

REPEATS = 8  # longest repetition that is counted, in tokens
PLACES = 512  # places of a text that are compared at once


@triton.jit
def _repeated(ids, start, end, PLACES: tl.constexpr, REPEATS: tl.constexpr):
    """Length, at most ``REPEATS``, of the longest suffix of the tokens ``start`` to ``end`` that occurs earlier."""
    longest = 0
    for block in range(start, end - 1, PLACES):
        last = block + tl.arange(0, PLACES)
        count = tl.zeros([PLACES], tl.int32)
        alive = last < end - 1
        for n in tl.static_range(REPEATS):
            there = last - n
            alive = alive & (there >= start)
            suffix = tl.load(ids + tl.maximum(end - 1 - n, 0))
            alive = alive & (tl.load(ids + tl.maximum(there, 0), mask=alive, other=-1) == suffix)
            count += alive.to(tl.int32)
        longest = tl.maximum(longest, tl.max(count, 0))
    return longest


@triton.jit
def _values(
    plan, n, numbers, history, columns, window, flags,
    FEATURES: tl.constexpr, WINDOW: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """The features [FEATURES] that the ``n`` lines of a plan list; ``numbers`` [16] are those that it names by code."""
    line = tl.arange(0, FEATURES)
    known = line < n
    code = tl.load(plan + 2 * line, mask=known, other=0)
    which = tl.load(plan + 2 * line + 1, mask=known, other=0)
    place = tl.arange(0, 16)
    value = tl.sum(tl.where(code[:, None] == place[None, :], numbers[None, :], 0.0), 1)
    if KEPT > 0:
        back = tl.arange(0, WINDOW)
        seen = tl.load(
            history + back[None, :] * columns + which[:, None],
            mask=(back < window)[None, :] & (code == 11)[:, None],
            other=float("nan"),
        )
        count = tl.sum((seen == seen).to(tl.float32), 1)
        mean = tl.sum(tl.where(seen == seen, seen, 0.0), 1) / count
        value = tl.where(code == 11, tl.where(count > 0, mean, float("nan")), value)
    return tl.where(code == 12, ((flags & which) != 0).to(tl.float32), value)


@triton.jit
def _decide(
    state, values, indices, rows, lengths, ids, places, prompts, checked, agreed, large_entropy, history, slots,
    columns, window, classes, known_classes, plan, features, recorded, scaling, weight, bias, inner, inner_bias, width,
    threshold, out, parts,
    PARTS: tl.constexpr, TOP: tl.constexpr, STATE: tl.constexpr, MOMENTS: tl.constexpr, REPEATED: tl.constexpr,
    REPEATS: tl.constexpr, PLACES: tl.constexpr, FEATURES: tl.constexpr, WINDOW: tl.constexpr, KEPT: tl.constexpr,
    WIDTH: tl.constexpr, SQUASHED: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0)
    row = tl.load(rows + at)
    length = tl.load(lengths + at)
    start = tl.load(prompts + row)
    text = ids + row * places
    place = tl.arange(0, 16)
    numbers = tl.zeros([16], tl.float32)
    if MOMENTS:
        most, total, first, second, nan = _moments(state, at, parts, PARTS, STATE)
        mean = first / total
        x, tokens = _largest(values, indices, at, parts, PARTS, TOP)
        mass, runner_up = 0.0, 0.0
        for i in tl.static_range(TOP):
            peak = tl.max(x, 0)
            token = tl.min(tl.where(x == peak, tokens, 2147483647), 0)
            share = tl.exp(tl.maximum(peak - tl.where(most == float("-inf"), 0.0, most), LEAST))
            mass += share
            if i == 1:
                runner_up = share
            x = tl.where(tokens == token, float("-inf"), x)
        numbers = tl.where(place == 0, tl.log(total) - mean + nan, numbers)
        numbers = tl.where(place == 1, tl.maximum(second / total - mean * mean, 0.0) + nan, numbers)
        numbers = tl.where(place == 2, 1.0 / total + nan, numbers)
        numbers = tl.where(place == 3, (1.0 - runner_up) / total + nan, numbers)
        numbers = tl.where(place == 4, 1.0 / mass + nan, numbers)
        numbers = tl.where(place == 5, mass / total + nan, numbers)
    numbers = tl.where(place == 6, (length - start).to(tl.float32), numbers)
    numbers = tl.where(place == 7, (length - tl.load(checked + row)).to(tl.float32), numbers)
    if REPEATED:
        numbers = tl.where(place == 8, _repeated(text, start, length, PLACES, REPEATS).to(tl.float32), numbers)
    numbers = tl.where(place == 9, tl.load(agreed + row), numbers)
    numbers = tl.where(place == 10, tl.load(large_entropy + row), numbers)
    last = tl.load(text + length - 1)
    flags = tl.load(classes + last, mask=last < known_classes, other=0).to(tl.int64)

    line = tl.arange(0, FEATURES)
    known = line < features
    earlier = history + (row * slots + length - start) * columns
    z = _values(plan, features, numbers, earlier, columns, window, flags, FEATURES, WINDOW, KEPT)
    z = (z - tl.load(scaling + line, mask=known, other=0.0)) / tl.load(scaling + features + line, mask=known, other=1.0)
    optional = tl.load(scaling + 2 * features + line, mask=known, other=1.0) > 0
    z = tl.where(known & ~(optional & (z != z)), z, 0.0)
    if KEPT > 0:  # the next position may hold the values of a discarded draft
        seen = _values(recorded, columns, numbers, earlier, columns, window, flags, KEPT, WINDOW, 0)
        kept = tl.arange(0, KEPT)
        now = earlier + window * columns + kept
        tl.store(now, seen, mask=kept < columns)
        tl.store(now + columns, tl.full([KEPT], float("nan"), tl.float32), mask=kept < columns)
    score = tl.load(bias)
    if WIDTH > 0:
        unit = tl.arange(0, WIDTH)
        there = unit < width
        w = tl.load(inner + unit[:, None] * features + line[None, :], mask=there[:, None] & known[None, :], other=0.0)
        h = tl.sum(w * z[None, :], 1) + tl.load(inner_bias + unit, mask=there, other=0.0)
        h = h / (1.0 + tl.exp(-h))
        score += tl.sum(tl.where(there, h * tl.load(weight + unit, mask=there, other=0.0), 0.0), 0)
    else:
        score += tl.sum(z * tl.load(weight + line, mask=known, other=0.0), 0)
    if SQUASHED:
        score = 1.0 / (1.0 + tl.exp(-score))
    tl.store(out + at, ~(score < tl.load(threshold)))


@torch.library.custom_op("policies::decide", mutates_args=("history",))
def decide(
    read: list[Tensor],
    rows: Tensor,
    lengths: Tensor,
    ids: Tensor,
    prompts: Tensor,
    known: list[Tensor],
    history: Tensor,
    window: int,
    classes: Tensor,
    plan: list[Tensor],
    scaling: Tensor,
    layers: list[Tensor],
    threshold: Tensor,
    repeated: bool,
    squashed: bool,
) -> Tensor:
    """bool [r]: decisions on the token after the first ``lengths`` [r] of ``rows`` [r].

    ``read``: what ``read_logits`` found, or nothing; ``known``: checked, agreed and large_entropy [batch]; ``plan``:
    lines of the features and of those recorded; ``layers``: weight and bias of a linear score, before them those of a
    layer of SiLU units, if any.
    """
    out = torch.empty(len(rows), dtype=torch.bool, device=rows.device)
    features, columns = len(plan[0]), history.shape[-1]
    weight, bias = layers[-2:]
    inner, inner_bias = layers[:2]
    width = len(inner_bias) if len(layers) > 2 else 0
    parts = read[0].shape[1] if read else 1
    power = triton.next_power_of_2
    _decide[(len(rows),)](
        *(read if read else (bias, bias, plan[0])), rows, lengths, ids, ids.shape[1], prompts, *known,
        history, history.shape[1], columns, window, classes, len(classes), plan[0], features, plan[1], scaling,
        weight, bias, inner, inner_bias, width, threshold, out, parts,
        PARTS=power(parts), TOP=TOP, STATE=STATE, MOMENTS=bool(read), REPEATED=repeated, REPEATS=REPEATS,
        PLACES=PLACES, FEATURES=power(max(features, 2)), WINDOW=power(max(window, 1)),
        KEPT=power(max(columns, 2)) if columns else 0, WIDTH=power(width) if width else 0, SQUASHED=squashed,
    )  # fmt: skip
    return out
