"""The work between the products of a layer, compiled for the CPU: norms, rotations, the cache, attention, activations.

Where weights are read in 80 us a layer, two dozen operations of torch at 5 us each take longer than they do. Here they
are four calls. Numbers are float32, sums are split into the same lanes in every call: a token's bits do not depend on
what other tokens are read with it. Keys and values are read where they are in the cache, whichever rows are read, and
only those that a query sees. numba compiles at the first use (seconds; cached beside this file).

A kernel takes the address of int64 arguments, most of them addresses themselves; 0 is what is not there.
"""

import ctypes
from functools import cache

import numpy as np
from llvmlite import binding, ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

from decoding.kernels.integer_products import openmp

SILU, GELU = 0, 1
SCRATCH = 4
"""Numbers of float32 that ``attend`` needs for each thread and slot: a score, and the slot's number as int64."""

_ANY_ORDER = {"contract", "nsz", "reassoc"}
_ORDERED = {"contract", "nsz"}  # ``_exp`` depends on its order
_FLOOR = np.float32(-87.0)  # from here on exp counts as 0
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_ROUND = np.float32(1.5 * 2**23)  # added to a number below 2**22, it leaves the nearest integer in the lowest bits
# exp on [-ln 2 / 2, ln 2 / 2], as in the Cephes library
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_ONE, _ZERO, _TWO = np.float32(1.0), np.float32(0.0), np.float32(2.0)
_GELU_A, _GELU_B = np.float32(0.7978845608028654), np.float32(0.044715)  # sqrt(2 / pi)
_LOWEST = np.float32(np.finfo(np.float32).min)

for _name in ("omp_get_thread_num", "omp_get_num_threads"):
    binding.add_symbol(_name, ctypes.cast(getattr(openmp(), _name), ctypes.c_void_p).value)
_floats, _integers = types.CPointer(types.float32), types.CPointer(types.int64)
_thread, _threads = (
    types.ExternalFunction(name, types.int32()) for name in ("omp_get_thread_num", "omp_get_num_threads")
)


@intrinsic
def _at(context, address):
    """float32 at an address."""
    return _floats(address), lambda context, builder, signature, arguments: builder.inttoptr(
        arguments[0], context.get_value_type(_floats)
    )


@intrinsic
def _integers_at(context, address):
    """int64 at an address."""
    return _integers(address), lambda context, builder, signature, arguments: builder.inttoptr(
        arguments[0], context.get_value_type(_integers)
    )


@intrinsic
def _power_of_two(context, shifted):
    """2**n of float32 ``n + _ROUND``: its lowest bits are n, and are moved into the exponent."""

    def generate(context, builder, signature, arguments):
        bits = ir.IntType(32)
        n = builder.add(builder.bitcast(arguments[0], bits), ir.Constant(bits, 127))
        return builder.bitcast(builder.shl(n, ir.Constant(bits, 23)), ir.FloatType())

    return types.float32(types.float32), generate


@njit(fastmath=_ORDERED, error_model="numpy")
def _exp(x):
    """exp of x <= 0 to a relative error of 1e-7, 0 below -87. Unlike the library's, it vectorises."""
    inside = max(x, _FLOOR)
    shifted = inside * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = inside - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
    value = (p * r * r + r + _ONE) * _power_of_two(shifted)
    return value if x > _FLOOR else _ZERO


@njit(fastmath=_ORDERED, error_model="numpy")
def _sigmoid(x):
    e = _exp(-abs(x))
    return (_ONE if x >= _ZERO else e) / (_ONE + e)


@njit(fastmath=_ANY_ORDER, error_model="numpy")
def _inverse_root(x, n, eps):
    """1 / sqrt(mean square + eps) of n numbers."""
    total = _ZERO
    for i in range(n):
        total += x[i] * x[i]
    return _ONE / np.sqrt(total / np.float32(n) + eps)


@njit(fastmath=_ORDERED, error_model="numpy")
def _normed(x, weight, n, eps, out):
    factor = _inverse_root(x, n, eps)
    for i in range(n):
        out[i] = x[i] * factor * weight[i]


@cfunc(types.void(types.voidptr), cache=True)
def add_norm(arguments):
    """x += alpha * delta, first normed by ``after`` if there; out = x normed by ``before``. [rows, n] each."""
    a = carray(arguments, (8,), dtype=np.int64)
    rows, n, constants = a[5], a[6], _at(a[7])
    eps, alpha = constants[0], constants[1]
    for row in range(rows):
        x, out = _at(a[0] + 4 * row * n), _at(a[1] + 4 * row * n)
        if a[2]:
            delta = _at(a[2] + 4 * row * n)
            if a[3]:
                _normed(delta, _at(a[3]), n, eps, delta)
            for i in range(n):
                x[i] += alpha * delta[i]
        if a[4]:
            _normed(x, _at(a[4]), n, eps, out)


@cfunc(types.void(types.voidptr), cache=True)
def activate(arguments):
    """out [rows, n] = activation(gate) * up of ``both`` [rows, gate and up of n numbers each]."""
    a = carray(arguments, (5,), dtype=np.int64)
    rows, n = a[2], a[3]
    for row in range(rows):
        gate, up, out = _at(a[0] + 8 * row * n), _at(a[0] + 8 * row * n + 4 * n), _at(a[1] + 4 * row * n)
        if a[4] == SILU:
            for i in range(n):
                out[i] = gate[i] * _sigmoid(gate[i]) * up[i]
        else:
            for i in range(n):
                x = gate[i]
                out[i] = x * _sigmoid(_TWO * _GELU_A * (x + _GELU_B * x * x * x)) * up[i]


@njit(fastmath=_ORDERED, error_model="numpy")
def _norm_heads(x, heads, width, weight, together, eps):
    """Norm each of the heads at x, or all of them together."""
    if together:
        _normed(x, weight, heads * width, eps, x)
        return
    for head in range(heads):
        part = _moved(x, head * width)
        _normed(part, weight, width, eps, part)


@intrinsic
def _moved(context, pointer, by):
    """A pointer to the number ``by`` numbers later."""
    return pointer(pointer, by), lambda context, builder, signature, arguments: builder.gep(
        arguments[0], [arguments[1]]
    )


@intrinsic
def _moved_integers(context, pointer, by):
    """The same of int64."""
    return pointer(pointer, by), lambda context, builder, signature, arguments: builder.gep(
        arguments[0], [arguments[1]]
    )


@njit(fastmath=_ORDERED, error_model="numpy")
def _turned(x, turn, pairs):
    """Rotate adjacent numbers as complex ones."""
    for i in range(pairs):
        real, imaginary = x[2 * i], x[2 * i + 1]
        cosine, sine = turn[2 * i], turn[2 * i + 1]
        x[2 * i] = real * cosine - imaginary * sine
        x[2 * i + 1] = real * sine + imaginary * cosine


@cfunc(types.void(types.voidptr), cache=True)
def place(arguments):
    """Norm and rotate queries and keys [tokens, heads + 2 * groups, width] in place; keys and values to their slots."""
    a = carray(arguments, (14,), dtype=np.int64)
    tokens, heads, groups, width, pairs = a[8], a[9], a[10], a[11], a[12]
    eps = _at(a[13])[0]
    slots = _integers_at(a[1])
    for token in range(tokens):
        query = _at(a[0] + 4 * token * (heads + 2 * groups) * width)
        key = _moved(query, heads * width)
        value = _moved(key, groups * width)
        if a[5]:
            _norm_heads(query, heads, width, _at(a[5]), a[7], eps)
            _norm_heads(key, groups, width, _at(a[6]), a[7], eps)
        if a[4]:
            turn = _at(a[4] + 8 * token * pairs)
            for head in range(heads + groups):
                _turned(_moved(query, head * width), turn, pairs)
        to = 4 * slots[token] * groups * width
        keys, values = _at(a[2] + to), _at(a[3] + to)
        for i in range(groups * width):
            keys[i], values[i] = key[i], value[i]


@njit(fastmath=_ANY_ORDER, error_model="numpy")
def _four_dots(query, keys, stride, slots, width, scale, scores):
    """Scores of 4 slots at once: the query is loaded once, and sums do not wait for each other."""
    first, second = _moved(keys, slots[0] * stride), _moved(keys, slots[1] * stride)
    third, fourth = _moved(keys, slots[2] * stride), _moved(keys, slots[3] * stride)
    a = b = c = d = _ZERO
    for i in range(width):
        x = query[i]
        a += x * first[i]
        b += x * second[i]
        c += x * third[i]
        d += x * fourth[i]
    scores[0], scores[1], scores[2], scores[3] = a * scale, b * scale, c * scale, d * scale


@njit(fastmath=_ANY_ORDER, error_model="numpy")
def _four_values(parts, values, stride, slots, width, out):
    """Add 4 values, each times its part, in one pass over ``out``."""
    first, second = _moved(values, slots[0] * stride), _moved(values, slots[1] * stride)
    third, fourth = _moved(values, slots[2] * stride), _moved(values, slots[3] * stride)
    a, b, c, d = parts[0], parts[1], parts[2], parts[3]
    for i in range(width):
        out[i] += a * first[i] + b * second[i] + c * third[i] + d * fourth[i]


@njit(fastmath=_ANY_ORDER, error_model="numpy")
def _dot(x, y, n):
    total = _ZERO
    for i in range(n):
        total += x[i] * y[i]
    return total


@njit(fastmath=_ANY_ORDER, error_model="numpy")
def _sum(x, n):
    total = _ZERO
    for i in range(n):
        total += x[i]
    return total


@njit(fastmath={"nsz", "nnan", "reassoc"}, error_model="numpy")
def _largest(x, n):
    largest = _LOWEST
    for i in range(n):
        largest = max(largest, x[i])
    return largest


@njit(fastmath=_ORDERED, error_model="numpy")
def _attend(query, keys, values, slots, stride, n, width, scale, cap, scores, out):
    """out [width]: attention of one head to n ``slots``, whose keys and values are ``stride`` numbers apart."""
    whole = n // 4 * 4
    for s in range(0, whole, 4):
        _four_dots(query, keys, stride, _moved_integers(slots, s), width, scale, _moved(scores, s))
    for s in range(whole, n):
        scores[s] = _dot(query, _moved(keys, slots[s] * stride), width) * scale
    if cap > _ZERO:
        for s in range(n):
            scores[s] = (_TWO * _sigmoid(_TWO * scores[s] / cap) - _ONE) * cap
    largest = _largest(scores, n)
    for s in range(n):
        lower = scores[s] - largest
        scores[s] = _exp(lower) + (lower - lower)  # NaN stays NaN
    factor = _ONE / _sum(scores, n)
    for i in range(width):
        out[i] = _ZERO
    for s in range(0, whole, 4):
        _four_values(_moved(scores, s), values, stride, _moved_integers(slots, s), width, out)
    for s in range(whole, n):
        value = _moved(values, slots[s] * stride)
        for i in range(width):
            out[i] += scores[s] * value[i]
    for i in range(width):
        out[i] *= factor


@njit(error_model="numpy")
def _visible(mask, first, end, slots):
    """Write the slots from ``first`` to before ``end`` that the additive ``mask`` does not hide; returns how many."""
    n = 0
    for slot in range(first, end):
        if not mask or _at(mask)[slot] >= _ZERO:
            slots[n] = slot
            n += 1
    return n


@cfunc(types.void(types.voidptr), cache=True)
def attend(arguments):
    """out [r, q, heads * width]: attention of the queries that ``place`` has left, over the cache; by all threads.

    Without a ``mask`` [r, q, reach], slot = position, and a query sees itself and what is before it in its window. Of
    a tree's nodes it sees those on its path, in their order: so its sums, and their bits, are those of a plain text.
    """
    a = carray(arguments, (17,), dtype=np.int64)
    r, q, heads, groups, width, slots, reach, window = a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]
    constants = _at(a[16])
    thread, threads = np.int64(_thread()), np.int64(_threads())
    scratch, work, share = a[4] + 4 * SCRATCH * thread * reach, r * q * heads, heads // groups
    visible, scores = _integers_at(scratch), _at(scratch + 8 * reach)
    seen_by, n = np.int64(-1), 0
    for item in range(work * thread // threads, work * (thread + 1) // threads):
        token, head = item // heads, item % heads
        row = token // q
        at_row = _integers_at(a[6])[row] if a[6] else row
        if token != seen_by:
            position = _integers_at(a[5])[token]
            if a[7]:
                n = _visible(a[7] + 4 * token * reach, 0, reach, visible)
            else:
                n = _visible(0, max(0, position - window + 1) if window else 0, position + 1, visible)
            seen_by = token
        query = _at(a[0] + 4 * (token * (heads + 2 * groups) + head) * width)
        offset = 4 * (at_row * slots * groups + head // share) * width
        keys, values, out = _at(a[1] + offset), _at(a[2] + offset), _at(a[3] + 4 * item * width)
        _attend(query, keys, values, visible, groups * width, n, width, constants[2], constants[3], scores, out)


def run(kernel, *arguments: int) -> None:
    """Run a kernel on this thread."""
    _function(kernel)((ctypes.c_int64 * len(arguments))(*arguments))


def run_parallel(kernel, threads: int, *arguments: int) -> None:
    openmp().GOMP_parallel(_function(kernel), (ctypes.c_int64 * len(arguments))(*arguments), threads, 0)


@cache
def _function(kernel) -> ctypes._CFuncPtr:
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kernel.address)
