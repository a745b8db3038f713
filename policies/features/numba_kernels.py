"""The features of a decision in one call, compiled for the CPU.

After a forward has swept the caches, any operation of torch or numpy takes 10 to 30 us to start, and a pass over the
vocabulary is slower for each array it writes. A decision takes dozens of them, for every token of a model that may be
tiny. One loop computes all seventeen features in the time of five operations. numba compiles it at the first decision
(seconds; cached beside this file). ``table`` is the reference, and serves other devices, replay and missing numba.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

CHUNK, BLOCK, TOP = 64, 1024, 10
"""Logits per chunk, whose maximum is found first; logits per block, summed in float32; largest probabilities wanted."""

POSITION, SINCE_LARGE, REPEATED, AGREED, LARGE_ENTROPY, MEAN = range(6, 12)
"""Places in ``fast_path.CODES``."""
REPEATS = 8  # longest repetition that is counted, in tokens

_FLOOR = np.float32(-87.0)  # from here on exp counts as 0; the power of two below would wrap around
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_ROUND = np.float32(1.5 * 2**23)  # added to a number below 2**22, it leaves the nearest integer in the lowest bits
# exp on [-ln 2 / 2, ln 2 / 2], as in the Cephes library
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_ONE, _ZERO = np.float32(1.0), np.float32(0.0)

ORDERED = {"contract", "nsz"}  # rounding stays as written: ``_exp`` depends on it
ANY_ORDER = {"contract", "nsz", "reassoc"}
"""Sums may be split into lanes, always the same ones: a row's numbers do not depend on its place in the batch."""
NO_NAN = {"nsz", "nnan"}  # a maximum may ignore NaN; the sums do not


@intrinsic
def _power_of_two(context, shifted):
    """2**n of float32 ``n + _ROUND``: its lowest bits are n, and are moved into the exponent."""

    def generate(context, builder, signature, arguments):
        bits = ir.IntType(32)
        n = builder.add(builder.bitcast(arguments[0], bits), ir.Constant(bits, 127))
        return builder.bitcast(builder.shl(n, ir.Constant(bits, 23)), ir.FloatType())

    return types.float32(types.float32), generate


@njit(fastmath=ORDERED)
def _exp(x):
    """exp of float32 x in [-87, 0] to a relative error of 1e-7. Unlike the library's, it vectorises."""
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
    """The sums of w, w (x - peak) and w (x - peak)^2 over the row, with w = exp(x - peak)."""
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
    """Fill ``best`` with the largest values of ``row``, descending; only chunks whose peak is among them are read."""
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
    """Length, at most REPEATS, of the longest suffix of ids[start:end] that also occurs earlier in it."""
    longest = 0
    for last in range(start, end - 1):
        n = 0
        while n < REPEATS and last - n >= start and ids[last - n] == ids[end - 1 - n]:
            n += 1
        longest = max(longest, n)
    return longest


@njit(nogil=True, cache=True)
def columns(
    logits, rows, lengths, plan, scaling, recorded, ids, prompts, checked, agreed, large_entropy, history, classes
):
    """Float32 [r, n]: the features that ``plan`` [n, 2] lists, of the ``rows`` [r] after ``lengths`` [r] tokens.

    Each is standardised by ``scaling`` [3, n]: its mean, its scale, and whether NaN becomes 0.

    A line of a plan is the index of a feature in ``fast_path.CODES`` and the column of the history or the bit of a
    class that it reads. The other arguments are the arrays of a ``PolicyState``. What ``recorded`` [k, 2] lists is
    written to the history [batch, window + places, k] at this position; the next position becomes NaN, for it may hold
    the values of a discarded draft.
    """
    out, seen = np.empty((len(rows), len(plan)), np.float32), np.empty(len(recorded), np.float32)
    needed = (plan[:, 0] < POSITION).any() or (recorded[:, 0] < POSITION).any()
    numbers = moments(logits) if needed else np.empty((len(rows), 0), np.float32)
    window = history.shape[1] - ids.shape[1] - 1
    for r in range(len(rows)):
        row, length = rows[r], lengths[r]
        start = prompts[row]
        here = length - start + window
        for part, found in ((plan, out[r]), (recorded, seen)):
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
                    value = np.nanmean(history[row, here - window : here, which])
                elif ids[row, length - 1] < len(classes):
                    value = (classes[ids[row, length - 1]] & which) != 0
                found[i] = value
        for i in range(len(plan)):
            value = (out[r, i] - scaling[0, i]) / scaling[1, i]
            out[r, i] = _ZERO if scaling[2, i] and np.isnan(value) else value
        if len(recorded):
            history[row, here] = seen
            history[row, here + 1] = np.nan
    return out
