"""Random numbers that depend on a seed and on their position only: the counter-based generator Philox4x32-10.

Element number ``n`` of a stream is a function of the stream's state and of ``n``. So a slice of an array can be filled
alone, on any rank or thread, with the numbers the whole array would have there: every function takes the position
`offset` of the first element of `out`.

A state is two unsigned 32-bit numbers, a seed and a counter; different states give independent streams. They are the
key of Philox. Its block ``b``, four 32-bit words, holds elements ``4b`` to ``4b + 3``, or ``2b`` and ``2b + 1`` where
each takes 64 bits (float64 and integers).

References
----------
Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from disttensor.errors import ArgumentError, DTypeError
from disttensor.kernels import philox_ir
from disttensor.kernels._jit import kernel, prange
from disttensor.kernels.native import NativeCall
from disttensor.kernels.normal import quantile_central, quantile_tail

State = np.ndarray
Offset = int | np.integer | np.ndarray

# Elements that a thread makes at a time; a multiple of 4.
_CHUNK = 4096
_LOW_WORD = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
# Bits of the significand, which is how many random bits fill [0, 1) evenly.
_PRECISION = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}
_TWO_SIGMA = math.erfc(math.sqrt(2)) / 2


def uniform(out: np.ndarray, state: State, offset: Offset) -> None:
    """Numbers evenly distributed in [0, 1), one included never.

    Parameters
    ----------
    out : array of bfloat16, float16, float32 or float64
        Where they go. Each is a multiple of 2⁻ᵖ with ``p`` the bits of the dtype's significand.
    state : uint32 array, shape (2,)
        Seed and counter.
    offset : int
        Position of the first element in the stream.

    Raises
    ------
    DTypeError
        If `out` is of another dtype.

    Examples
    --------
    >>> whole, part = np.empty(10, np.float32), np.empty(4, np.float32)
    >>> state = np.array([42, 0], np.uint32)
    >>> uniform(whole, state, 0)
    >>> uniform(part, state, 6)
    >>> bool((whole[6:] == part).all())
    True
    """
    bits = _PRECISION.get(out.dtype.name, 0)
    if out.dtype == np.float64:
        _fill_floats(_uniform64, out, state, offset, np.uint64(64 - bits), 2.0**-bits)
    else:
        _fill_floats(_uniform32, out, state, offset, 32 - bits, 2.0**-bits)


def normal(out: np.ndarray, state: State, offset: Offset) -> None:
    """Normally distributed numbers of mean 0 and standard deviation 1, by inversion of the distribution function.

    Parameters
    ----------
    out : array of bfloat16, float16, float32 or float64
        Where they go. They are within ±6.3 (float64: ±8.2).
    state, offset
        As for `uniform`.

    Raises
    ------
    DTypeError
        If `out` is of another dtype.
    """
    _fill_floats(_normal64 if out.dtype == np.float64 else _normal32, out, state, offset, 0.0, 1.0)


def truncated_normal(out: np.ndarray, state: State, offset: Offset) -> None:
    """Normally distributed numbers within two standard deviations of the mean 0, by inversion.

    Their standard deviation is 0.87962566 times that of `normal`.

    Parameters
    ----------
    out : array of bfloat16, float16, float32 or float64
        Where they go.
    state, offset
        As for `uniform`.

    Raises
    ------
    DTypeError
        If `out` is of another dtype.
    """
    fill = _normal64 if out.dtype == np.float64 else _normal32
    _fill_floats(fill, out, state, offset, _TWO_SIGMA, 1 - 2 * _TWO_SIGMA)


def randint(out: np.ndarray, state: State, offset: Offset, low: int, high: int) -> None:
    """Integers evenly distributed in [low, high): ``low + ⌊w · (high − low) / 2⁶⁴⌋`` of a 64-bit word ``w``.

    The probabilities of two integers differ by less than 2⁻⁶⁴.

    Parameters
    ----------
    out : array of any integer dtype
        Where they go.
    state, offset
        As for `uniform`.
    low, high : int
        The smallest number, and one more than the greatest; both must fit `out`.

    Raises
    ------
    DTypeError
        If `out` is not of an integer dtype.
    ArgumentError
        If the range is empty or does not fit `out`.

    References
    ----------
    Lemire, "Fast random integer generation in an interval", ACM TOMACS 29 (2019).
    """
    if out.dtype.kind not in "iu":
        raise DTypeError(f"randint() fills arrays of an integer dtype, not {out.dtype}.")
    limits = np.iinfo(out.dtype)
    if not limits.min <= low < high <= limits.max + 1:
        raise ArgumentError(
            f"randint() got low={low} and high={high}; it needs {limits.min} <= low < high <= {limits.max + 1} "
            f"for {out.dtype}."
        )
    # The full range of a 64-bit dtype is 2⁶⁴ numbers: a span of 0 stands for it.
    span, start = np.uint64((high - low) % 2**64), np.uint64(low % 2**64)
    _randint(out.reshape(-1), *_key(state), np.int64(int(offset)), span, start)


def bernoulli(out: np.ndarray, state: State, offset: Offset, probability: float) -> None:
    """Ones with the given probability, else zeros.

    Parameters
    ----------
    out : array of any dtype
        Where they go.
    state, offset
        As for `uniform`.
    probability : float
        Of a one, between 0 and 1; it is rounded to a multiple of 2⁻³².

    Raises
    ------
    ArgumentError
        If `probability` is outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ArgumentError(f"bernoulli() needs a probability between 0 and 1, got {probability}.")
    bound = np.uint64(round(float(probability) * 2**32))
    ones = out if out.dtype in (np.bool_, np.float32) else np.empty(out.shape, np.bool_)
    _bernoulli(ones.reshape(-1), *_key(state), np.int64(int(offset)), bound)
    if ones is not out:
        out[...] = ones


def bind_dropout(out: np.ndarray, state: State, row: np.ndarray, rate: float) -> NativeCall | None:
    """A call that fills `out` with `bernoulli(1 − rate) / (1 − rate)`, from the stream's place of a row on.

    Parameters
    ----------
    out : array, shape (rows, …)
    state : uint32 array, shape (2,)
    row : integer array, shape ()
        The number of the first row.
    rate : float
        Between 0 and 1.

    Returns
    -------
    NativeCall or None
        None where there is no machine code for these dtypes.
    """
    dtypes = (out.dtype, np.float32), (state.dtype, np.uint32), (row.dtype, np.int64)
    if any(a != b for a, b in dtypes) or not all(a.flags.c_contiguous for a in (out, state, row)):
        return None
    bound, value = round((1 - float(rate)) * 2**32), 1 / (1 - rate) if rate < 1 else 0.0
    return NativeCall(
        philox_ir.functions()["dropout"], (out, state, row, math.prod(out.shape[1:]), bound, float(value)),
        extent=out.size, grain=_CHUNK,
    )  # fmt: skip


def _key(state: State) -> tuple[np.uint64, np.uint64]:
    return np.uint64(state[0]), np.uint64(state[1])


def _fill_floats(fill: Callable[..., Any], out: np.ndarray, state: State, offset: Offset, *parameters: Any) -> None:
    """Run a kernel for float32 or float64; 16-bit floats are rounded from float32."""
    if out.dtype.name not in _PRECISION:
        raise DTypeError(f"random floating-point numbers fill arrays of {', '.join(_PRECISION)}, not {out.dtype}.")
    wide = np.empty(out.shape, np.float32) if out.dtype.itemsize == 2 else out
    fill(wide.reshape(-1), *_key(state), np.int64(int(offset)), *parameters)
    if wide is not out:
        out[...] = wide


@kernel()
def philox4x32(
    c0: np.uint64, c1: np.uint64, c2: np.uint64, c3: np.uint64, k0: np.uint64, k1: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """One block of Philox4x32-10: four words for a counter of four words and a key of two, all as uint64."""
    for _ in range(10):
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (b >> _HALF) ^ c1 ^ k0, b & _LOW_WORD, (a >> _HALF) ^ c3 ^ k1, a & _LOW_WORD
        k0, k1 = (k0 + _WEYL[0]) & _LOW_WORD, (k1 + _WEYL[1]) & _LOW_WORD
    return c0, c1, c2, c3


@kernel()
def _words(words: np.ndarray, k0: np.uint64, k1: np.uint64, first: int) -> int:
    """Fill `words` with the words of the stream from number 4 · ⌊first / 4⌋ on; return where number `first` is."""
    block = np.uint64(first >> 2)
    for i in range(words.shape[0] // 4):
        number = block + np.uint64(i)
        c0, c1, c2, c3 = philox4x32(number & _LOW_WORD, number >> _HALF, np.uint64(0), np.uint64(0), k0, k1)
        words[4 * i] = c0
        words[4 * i + 1] = c1
        words[4 * i + 2] = c2
        words[4 * i + 3] = c3
    return first & 3


@kernel()
def _word64(words: np.ndarray, i: int) -> np.uint64:
    return (np.uint64(words[i]) << _HALF) | np.uint64(words[i + 1])


def _uniform32(out: np.ndarray, k0: np.uint64, k1: np.uint64, offset: np.int64, shift: int, scale: float) -> None:
    # Most weights begin with these: without numba, whose import takes longer than the first step of a small model.
    state, row = np.array([k0, k1], np.uint32), np.asarray(offset)
    NativeCall(philox_ir.functions()["uniform"], (out, state, row, 1, shift, scale), out.size, _CHUNK)()


@kernel(parallel=True)
def _uniform64(out: np.ndarray, k0: np.uint64, k1: np.uint64, offset: int, shift: np.uint64, scale: float) -> None:
    for chunk in prange((out.shape[0] + _CHUNK - 1) // _CHUNK):
        part = out[chunk * _CHUNK : (chunk + 1) * _CHUNK]
        words = np.empty((2 * part.shape[0] + 6) // 4 * 4, np.uint32)
        skip = _words(words, k0, k1, 2 * (offset + chunk * _CHUNK))
        for i in range(part.shape[0]):
            part[i] = np.float64(_word64(words, skip + 2 * i) >> shift) * scale


@kernel()
def _quantiles(out: np.ndarray, probabilities: np.ndarray) -> None:
    """Normal quantiles: the formula for the middle for all, which vectorises, then the tails again."""
    for i in range(out.shape[0]):
        out[i] = quantile_central(probabilities[i] - 0.5)
    for i in range(out.shape[0]):
        if abs(probabilities[i] - 0.5) > 0.425:
            out[i] = quantile_tail(probabilities[i])


def _normal32(out: np.ndarray, k0: np.uint64, k1: np.uint64, offset: np.int64, start: float, span: float) -> None:
    state, row = np.array([k0, k1], np.uint32), np.asarray(offset)
    NativeCall(philox_ir.functions()["normal"], (out, state, row, 1, start, span), out.size, _CHUNK)()


@kernel(parallel=True)
def _normal64(out: np.ndarray, k0: np.uint64, k1: np.uint64, offset: int, start: float, span: float) -> None:
    for chunk in prange((out.shape[0] + _CHUNK - 1) // _CHUNK):
        part = out[chunk * _CHUNK : (chunk + 1) * _CHUNK]
        words = np.empty((2 * part.shape[0] + 6) // 4 * 4, np.uint32)
        skip = _words(words, k0, k1, 2 * (offset + chunk * _CHUNK))
        probabilities = np.empty(part.shape[0])
        for i in range(part.shape[0]):
            # 52 bits and a half: exact in float64, and never 0 or 1.
            bits = np.float64(_word64(words, skip + 2 * i) >> np.uint64(12))
            probabilities[i] = start + span * ((bits + 0.5) * 2.0**-52)
        _quantiles(part, probabilities)


@kernel()
def _scaled(word: np.uint64, span: np.uint64) -> np.uint64:
    """⌊word · span / 2⁶⁴⌋, the upper half of a 128-bit product; a span of 0 stands for 2⁶⁴."""
    if span == np.uint64(0):
        return word
    low = (word & _LOW_WORD) * (span & _LOW_WORD)
    middle = (word >> _HALF) * (span & _LOW_WORD) + (low >> _HALF)
    other = (word & _LOW_WORD) * (span >> _HALF) + (middle & _LOW_WORD)
    return (word >> _HALF) * (span >> _HALF) + (middle >> _HALF) + (other >> _HALF)


@kernel(parallel=True)
def _randint(out: np.ndarray, k0: np.uint64, k1: np.uint64, offset: int, span: np.uint64, start: np.uint64) -> None:
    for chunk in prange((out.shape[0] + _CHUNK - 1) // _CHUNK):
        part = out[chunk * _CHUNK : (chunk + 1) * _CHUNK]
        words = np.empty((2 * part.shape[0] + 6) // 4 * 4, np.uint32)
        skip = _words(words, k0, k1, 2 * (offset + chunk * _CHUNK))
        for i in range(part.shape[0]):
            part[i] = start + _scaled(_word64(words, skip + 2 * i), span)


@kernel(parallel=True)
def _bernoulli(out: np.ndarray, k0: np.uint64, k1: np.uint64, offset: int, bound: np.uint64) -> None:
    for chunk in prange((out.shape[0] + _CHUNK - 1) // _CHUNK):
        part = out[chunk * _CHUNK : (chunk + 1) * _CHUNK]
        words = np.empty((part.shape[0] + 6) // 4 * 4, np.uint32)
        skip = _words(words, k0, k1, offset + chunk * _CHUNK)
        for i in range(part.shape[0]):
            part[i] = np.uint64(words[skip + i]) < bound
