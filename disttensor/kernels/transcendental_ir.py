"""Exponentials in LLVM IR, for vectors of float32 or float64, within a few units in the last place."""

from __future__ import annotations

import math

from disttensor.kernels.ir import Function, Value


def _parts(f: Function, x: Value) -> tuple[Value, Value, Value]:
    """2ⁿ and exp(r) − 1 with exp(x) = 2ⁿ·exp(r), for x ≤ 0; and whether exp(x) is so small that it counts as 0.

    x = n·ln 2 + r, with ln 2 in two parts, so that n times the first is exact.
    """
    wide = "double" in x.type
    bits, mantissa, bias, lowest, terms = ("i64", 52, 1023, -708.0, 13) if wide else ("i32", 23, 127, -87.0, 7)
    high = 0.693145751953125 if wide else 0.693359375
    low = 1.42860682030941723212e-6 if wide else math.log(2) - high
    whole = x.type.replace("double" if wide else "float", bits)
    rounder = 1.5 * 2.0**mantissa
    inside = f.select(x < lowest, f.constant(x.type, lowest), x)
    shifted = f.multiply_add(inside, 1 / math.log(2), rounder)
    n = shifted - rounder
    r = f.multiply_add(n, -low, f.multiply_add(n, -high, inside))
    series = f.constant(x.type, 1 / math.factorial(terms))
    for degree in range(terms - 1, 1, -1):
        series = f.multiply_add(series, r, 1 / math.factorial(degree))
    power = f.emit(whole, f"shl {f.emit(whole, f'bitcast {shifted} to {whole}')}, {f.constant(whole, mantissa).name}")
    power = f.emit(x.type, f"bitcast {power + (bias << mantissa)} to {x.type}")
    return power, f.multiply_add(r * r, series, r), x < lowest


def exponential(f: Function, x: Value) -> Value:
    """exp(x) for x ≤ 0; 0 where it would be near the subnormal numbers."""
    power, rest, vanishes = _parts(f, x)
    # Scaled last, so that nothing subnormal is flushed to zero on the way.
    return f.select(vanishes, f.constant(x.type, 0), power * (rest + 1))


def sigmoid(f: Function, x: Value) -> Value:
    """1 / (1 + exp(−x))."""
    e = exponential(f, -f.unary("fabs", x))
    return f.select(x >= 0, f.constant(x.type, 1), e) / (e + 1)


def tanh(f: Function, x: Value) -> Value:
    """The hyperbolic tangent."""
    power, rest, _ = _parts(f, f.unary("fabs", x) * -2)
    e = f.multiply_add(power, rest, power - 1)
    return f.copy_sign(e / (e + 2), x)
