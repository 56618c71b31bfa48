"""The machine code of dropout masks, uniform and normal numbers: Philox4x32-10 on several blocks side by side."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from disttensor.kernels import ir, machine
from disttensor.kernels.ir import Function, Value
from disttensor.kernels.normal import quantile_central, quantile_far, quantile_near

ARGUMENTS = ("out", "state", "row", "row_size", "number", "value")
"""A float32 array; two uint32; the int64 number of its first row and the elements of a row; then, of `dropout`, what a
word must be below, and the float32 that is written then, as the bits of a double; of `uniform`, how many bits of a word
are dropped, and what the rest is multiplied with; of `normal`, the bits of two doubles: the probability that a word of
0 stands for, and how much more one of 2³² would."""

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW_WORD = 0xFFFFFFFF


@functools.cache
def functions() -> Mapping[str, int]:
    """The addresses of `dropout`, `uniform` and `normal`, which fill elements [start, stop)."""
    return machine.load(ir.written("philox", _text, machine.vector_bytes()))


def _text() -> str:
    fillings = [_filling("dropout", _below), _filling("uniform", _evenly), _filling("normal", _normal)]
    return ir.module([_tail(), *fillings], "declare double @log(double)")


def _below(f: Function, word: Value, number: Value, value: Value) -> Value:
    """`value` where a word is below `number`, else 0."""
    lanes = machine.vector_bytes() // 4
    return f.select(f.emit(f"<{lanes} x i1>", f"icmp ult {word}, {number.name}"), value, 0)


def _evenly(f: Function, word: Value, number: Value, value: Value) -> Value:
    """`value` times a word without its last `number` bits, of which float32 holds what is left exactly."""
    lanes = machine.vector_bytes() // 4
    integers, floats = f"<{lanes} x i32>", f"<{lanes} x float>"
    left = f.emit(f"<{lanes} x i64>", f"lshr {word}, {number.name}")
    return f.emit(floats, f"sitofp {f.emit(integers, f'trunc {left} to {integers}')} to {floats}") * value


def _normal(f: Function, word: Value, number: Value, value: Value) -> Value:
    """The normal quantile of the probability ``number + value · (word + 1/2) / 2³²``."""
    lanes = machine.vector_bytes() // 4
    doubles, floats = f"<{lanes} x double>", f"<{lanes} x float>"
    start = f.emit(doubles, f"bitcast {number} to {doubles}")
    evenly = (f.emit(doubles, f"uitofp {word} to {doubles}") + 0.5) * 2.0**-32
    probability = start + value * evenly
    off_centre = probability - 0.5
    found, edge = (Value(f, "ptr", f.reserve(kind)) for kind in (floats, doubles))
    central = quantile_central.function(off_centre)
    f.store(f.emit(floats, f"fptrunc {central} to {floats}"), found, 64)
    f.store(probability, edge, 64)
    with f.loop(0, lanes) as lane:
        single = f.load("double", f.at(edge, lane * 8), 8)
        with f.when(f.unary("fabs", single - 0.5) > 0.425):
            f.call("@tail", f.at(found, lane * 4), single)
    return f.load(floats, found, 64)


def _tail() -> Function:
    """The quantile of a probability that is not `quantile_central`'s, as float32."""
    f = Function("tail", [("ptr", "to"), ("double", "p")], "internal noinline")
    p = f["p"]
    rest = 1.0 - p
    rare = f.select(p < rest, p, rest)
    r = f.unary("sqrt", -f.emit("double", f"call double @log({rare})"))
    size = f.select(r <= 5.0, quantile_near.function(r - 1.6), quantile_far.function(r - 5.0))
    quantile = f.select(p < 0.5, -size, size)
    f.store(f.emit("float", f"fptrunc {quantile} to float"), f["to"], 4)
    return f


def _filling(name: str, element: Callable[[Function, Value, Value, Value], Value]) -> Function:
    f = Function(name, [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
    kinds = ("ptr", "ptr", "ptr", "i64", "i64", "double")
    a = {n: f.field(f["arguments"], i, kind) for i, (n, kind) in enumerate(zip(ARGUMENTS, kinds, strict=True))}
    # Two vectors of words at a time: one alone would wait for its multiplications.
    lanes = machine.vector_bytes() // 4
    words, floats = f"<{lanes} x i64>", f"<{lanes} x float>"
    keys = [f.emit("i64", f"zext {f.load('i32', f.at(a['state'], 4 * i), 4)} to i64") for i in range(2)]
    if name == "normal":
        value = f.splat(f"<{lanes} x double>", a["value"])
    else:
        value = f.splat(floats, f.emit("float", f"fptrunc {a['value']} to float"))
    number = f.splat(words, a["number"])
    numbers = Value(f, words, f"<{', '.join(f'i64 {i}' for i in range(lanes))}>")
    edge = Value(f, "ptr", f.reserve("float", 4 * lanes))
    # Numbers of elements in the stream.
    offset = f.load("i64", a["row"], 8) * a["row_size"]
    first, last = offset + f["start"], offset + f["stop"]
    with f.loop(first // 4, (last + 3) // 4, lanes) as block:
        counter = f.splat(words, block) + numbers
        kept = [element(f, word, number, value) for word in _philox(f, words, counter, keys)]
        pairs = [i for lane in range(lanes) for i in (lane, lane + lanes)]
        left, right = f.shuffle(kept[0], kept[1], pairs), f.shuffle(kept[2], kept[3], pairs)
        fours = [
            i for lane in range(lanes) for i in (2 * lane, 2 * lane + 1, 2 * (lane + lanes), 2 * (lane + lanes) + 1)
        ]
        mask, begin = f.shuffle(left, right, fours), block * 4
        inside = f.emit("i1", f"and {begin >= first}, {(begin + 4 * lanes <= last).name}")
        with f.when(inside):
            f.store(mask, f.at(a["out"], (begin - offset) * 4), 4)
        with f.unless(inside):
            f.store(mask, edge, 64)
            end = f.minimum(begin + 4 * lanes, last)
            with f.loop(f.select(begin < first, first, begin), end) as place:
                single = f.load("float", f.at(edge, (place - begin) * 4), 4)
                f.store(single, f.at(a["out"], (place - offset) * 4), 4)
    return f


def _philox(f: Function, words: str, counter: Value, keys: list[Value]) -> list[Value]:
    """The four words of blocks, in the lower halves of 64-bit lanes."""
    low, zero = f.constant(words, _LOW_WORD), f.constant(words, 0)

    def high(x: Value) -> Value:
        return f.emit(words, f"lshr {x}, {f.constant(words, 32).name}")

    def exclusive(x: Value, y: Value, z: Value) -> Value:
        return f.emit(words, f"xor {f.emit(words, f'xor {x}, {y.name}')}, {z.name}")

    c = [counter & low, high(counter), zero, zero]
    for step in range(10):
        bumped = [(key + step * weyl) & f.integer(_LOW_WORD) for key, weyl in zip(keys, _WEYL, strict=True)]
        k = [f.splat(words, key) for key in bumped]
        p, q = c[0] * _MULTIPLIERS[0], c[2] * _MULTIPLIERS[1]
        c = [exclusive(high(q), c[1], k[0]), q & low, exclusive(high(p), c[3], k[1]), p & low]
    return c
