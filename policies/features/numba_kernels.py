"""The features of a decision in one call, compiled for the CPU.

After a forward has swept the caches, any operation, of torch or of numpy, takes 10 to 30 us to start, however little
it does, and a pass over the vocabulary is slower for each array it writes. A decision takes dozens of them, for every
token of a model that may be tiny. Here it is one loop: all seventeen features cost what five operations cost.
numba compiles it at the first decision (seconds; kept beside this file for the next process). ``table`` is
what it must equal, for other devices, for replay, and where numba is missing.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

CHUNK, BLOCK, TOP = 64, 1024, 10
"""Neighbours of which the largest is found first, and those that are summed in float32; how many of the largest
probabilities are asked for."""

CODES = (
    *("entropy", "varentropy", "top1", "margin", "top10", "top10_mass"),
    *("position", "since_large", "repeated", "agreed", "large_entropy", "mean", "last_is"),
)
POSITION, SINCE_LARGE, REPEATED, AGREED, LARGE_ENTROPY, MEAN = range(6, 12)
REPEATS = 8
"""as far back as a repetition is followed"""

_FLOOR = np.float32(-87.0)  # from here on exp counts as 0; the power of two below would wrap around
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_ROUND = np.float32(1.5 * 2**23)  # added to a number below 2**22, it leaves the nearest integer in the lowest bits
# exp on [-ln 2 / 2, ln 2 / 2], as in the Cephes library
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_ONE, _ZERO = np.float32(1.0), np.float32(0.0)

ORDERED = {"contract", "nsz"}
"""Rounding stays as written, which ``_exp`` lives on."""
ANY_ORDER = {"contract", "nsz", "reassoc"}
"""Sums may be split into lanes: always the same ones, so that a row gives the same numbers wherever it stands."""
NO_NAN = {"nsz", "nnan"}
"""A maximum may overlook NaN; the sums do not."""


@intrinsic
def _power_of_two(context, shifted):
    """2**n of float32 ``n + _ROUND``, whose lowest bits are n, moved to where the exponent is."""

    def generate(context, builder, signature, arguments):
        bits = ir.IntType(32)
        n = builder.add(builder.bitcast(arguments[0], bits), ir.Constant(bits, 127))
        return builder.bitcast(builder.shl(n, ir.Constant(bits, 23)), ir.FloatType())

    return types.float32(types.float32), generate


@njit(fastmath=ORDERED)
def _exp(x):
    """exp of float32 x in [-87, 0], right to 1e-7 of it. Unlike the library's it can be taken of eight at a time."""
    shifted = x * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
    return (p * r * r + r + _ONE) * _power_of_two(shifted)


@njit(fastmath=NO_NAN)
def _largest(values):
    most = values[0]
    for i in range(len(values)):
        most = values[i] if values[i] > most else most
    return most


@njit(fastmath=ANY_ORDER)
def _sums(row, peak):
    """Of w = exp(x - peak): the sums of w, w (x - peak) and w (x - peak)^2."""
    total, first, second = _ZERO, _ZERO, _ZERO
    for i in range(len(row)):
        below = row[i] - peak
        below = _FLOOR if below < _FLOOR else below  # NaN stays
        weight = _ZERO if below <= _FLOOR else _exp(below)
        moment = weight * below
        total += weight
        first += moment
        second += moment * below
    return total, first, second


@njit
def _best(row, peaks, best):
    """Fill ``best`` with the largest values of ``row``, descending; a chunk is read if its peak is among them."""
    best[:] = -np.inf
    for c in range(len(peaks)):
        if peaks[c] > best[-1]:
            for value in row[c * CHUNK : (c + 1) * CHUNK]:
                if value > best[-1]:
                    place = len(best) - 1
                    while place > 0 and best[place - 1] < value:
                        best[place] = best[place - 1]
                        place -= 1
                    best[place] = value


@njit
def moments(logits):
    """Float32 [n, 6] of float32 ``logits`` [n, vocab]: entropy, varentropy, top1, margin, top10 and top10_mass.

    Masked logits (-inf) are fine; NaN or inf gives NaN throughout its row.
    """
    rows, vocab = logits.shape
    out = np.empty((rows, 6), np.float32)
    peaks, best = np.empty((vocab + CHUNK - 1) // CHUNK, np.float32), np.empty(min(TOP, vocab), np.float32)
    for r in range(rows):
        row = logits[r]
        for c in range(len(peaks)):
            peaks[c] = _largest(row[c * CHUNK : (c + 1) * CHUNK])
        peak = _largest(peaks)
        total, first, second = 0.0, 0.0, 0.0
        for b in range(0, vocab, BLOCK):
            sums = _sums(row[b : b + BLOCK], peak)
            total, first, second = total + sums[0], first + sums[1], second + sums[2]
        mean = first / total
        _best(row, peaks, best)
        mass = 0.0
        for value in best:
            mass += np.exp(value - peak)
        second_best = np.exp(best[1] - peak) if vocab > 1 else 0.0
        out[r, 0] = np.log(total) - mean
        out[r, 1] = max(second / total - mean * mean, 0.0)
        out[r, 2] = 1.0 / total
        out[r, 3] = (1.0 - second_best) / total
        out[r, 4] = 1.0 / mass
        out[r, 5] = mass / total
        if np.isnan(total):
            out[r] = np.nan
    return out


@njit
def _repeats(ids, start, end):
    """Length of the longest end of ids[start:end] that it holds earlier too."""
    longest = 0
    for last in range(start, end - 1):
        n = 0
        while n < REPEATS and last - n >= start and ids[last - n] == ids[end - 1 - n]:
            n += 1
        longest = max(longest, n)
    return longest


@njit
def _mean(values):
    """Over those that are not NaN; NaN where there is none."""
    total, known = 0.0, 0
    for i in range(len(values)):
        if not np.isnan(values[i]):
            total += values[i]
            known += 1
    return total / known if known else np.nan


@njit(nogil=True, cache=True)
def columns(
    logits, rows, lengths, plan, scaling, watched, ids, prompts, checked, agreed, large_entropy, history, classes
):
    """Float32 [r, n] of what ``plan`` [n, 2] lists, of the ``rows`` [r] that have ``lengths`` [r] tokens.

    Each less its mean, over its scale, and 0 for NaN where a mean stands for it: ``scaling`` [3, n].

    A line of a plan is the number of a feature in ``CODES`` and which column of the history or which bit of a class it
    reads. The rest are the arrays of a trail. What ``watched`` [k, 2] lists is written to the history
    [batch, window + places, k] at this place, and the place after it is unknown again: it may have been seen in a draft
    that was dropped.
    """
    out, seen = np.empty((len(rows), len(plan)), np.float32), np.empty(len(watched), np.float32)
    needed = (plan[:, 0] < POSITION).any() or (watched[:, 0] < POSITION).any()
    numbers = moments(logits) if needed else np.empty((len(rows), 0), np.float32)
    window = history.shape[1] - ids.shape[1] - 1
    for r in range(len(rows)):
        row, length = rows[r], lengths[r]
        start = prompts[row]
        here = length - start + window
        for part, found in ((plan, out[r]), (watched, seen)):
            for i in range(len(part)):
                code, which = part[i]
                value = np.nan
                if code < POSITION:
                    value = numbers[r, code]
                elif code == POSITION:
                    value = length - start
                elif code == SINCE_LARGE:
                    value = length - checked[row]
                elif code == REPEATED:
                    value = _repeats(ids[row], start, length)
                elif code == AGREED:
                    value = agreed[row]
                elif code == LARGE_ENTROPY:
                    value = large_entropy[row]
                elif code == MEAN:
                    value = _mean(history[row, here - window : here, which])
                elif ids[row, length - 1] < len(classes):
                    value = (classes[ids[row, length - 1]] & which) != 0
                found[i] = value
        for i in range(len(plan)):
            value = (out[r, i] - scaling[0, i]) / scaling[1, i]
            out[r, i] = _ZERO if scaling[2, i] and np.isnan(value) else value
        if len(watched):
            history[row, here] = seen
            history[row, here + 1] = np.nan
    return out
