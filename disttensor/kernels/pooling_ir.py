"""The machine code of pooling: windows by a table of their places, channels side by side in vectors.

Where the largest element of a window is, is found again for the gradient instead of being kept: the input is read once
more, but no tensor of indices is written and read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from disttensor.kernels import ir, machine
from disttensor.kernels.ir import Function, Value

ARGUMENTS = ("out", "x", "g", "windows", "taps", "count", "channels", "image", "clear", "add")
"""What all functions take: `x` is what was pooled, of which an image has so many bytes; `g` has the shape of the result
for a gradient, of `x` for `max_pool_gather`. `count` windows an image has; for each, `windows` says where it begins in
an image, where its part of `taps` begins, and how many taps it has: the distances of its elements, in row-major order.
Gradients are cleared first and added to if so said; else every element belongs to one window."""

_Body = Callable[[str, Value], None]


@functools.cache
def functions(kind: str) -> Mapping[str, int]:
    """The addresses of the functions for "float" or "double".

    `max_pool`, `max_pool_gather` and `average_pool` compute windows [start, stop), counted over all images;
    `max_pool_gradient` and `average_pool_gradient` images [start, stop).
    """
    return machine.load(ir.written("pooling", functools.partial(_text, kind), kind, machine.vector_bytes()))


def _text(kind: str) -> str:
    return ir.module([
        _Pooling("max_pool", kind).max_pool(), _Pooling("max_pool_gather", kind).max_pool_gather(),
        _Pooling("max_pool_gradient", kind).max_pool_gradient(), _Pooling("average_pool", kind).average_pool(),
        _Pooling("average_pool_gradient", kind).average_pool_gradient(),
    ])  # fmt: skip


class _Pooling:
    """One function in the making."""

    def __init__(self, name: str, kind: str):
        self.kind, self.itemsize = kind, {"float": 4, "double": 8}[kind]
        self.lanes = machine.vector_bytes() // self.itemsize
        self.f = Function(name, [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
        for number, argument in enumerate(ARGUMENTS):
            setattr(self, argument, self.f.field(self.f["arguments"], number, "ptr" if number < 5 else "i64"))

    out: Value
    x: Value
    g: Value
    windows: Value
    taps: Value
    count: Value
    channels: Value
    image: Value
    clear: Value
    add: Value

    def max_pool(self) -> Function:
        """The largest element of each window."""
        f = self.f

        def write(place: Value, inside: Value, taps: Value, count: Value) -> None:
            def body(vector: str, offset: Value) -> None:
                best = self._largest(vector, f.at(self.x, inside, offset), taps, count)[0]
                f.store(best.get(), f.at(self.out, place, offset), self.itemsize)

            self._each_channel(body)

        return self._over_windows(write)

    def max_pool_gather(self) -> Function:
        """The element of `g` where `x` is largest."""
        f = self.f

        def write(place: Value, inside: Value, taps: Value, count: Value) -> None:
            def body(vector: str, offset: Value) -> None:
                where = self._largest(vector, f.at(self.x, inside, offset), taps, count)[1].get()
                picked = f.variable(f.constant(vector, 0))
                with f.loop(0, count) as t:
                    here = self._is(where, t)
                    value = f.load(vector, f.at(self.g, inside, offset, self._tap(taps, t)), self.itemsize)
                    picked.set(f.select(here, value, picked.get()))
                f.store(picked.get(), f.at(self.out, place, offset), self.itemsize)

            self._each_channel(body)

        return self._over_windows(write)

    def max_pool_gradient(self) -> Function:
        """`g` at the largest element of its window."""
        f = self.f

        def parts(vector: str, slope: Value, x: Value, taps: Value, count: Value) -> Callable[[Value], Value]:
            where = self._largest(vector, x, taps, count)[1].get()
            return lambda t: f.select(self._is(where, t), slope, f.constant(vector, 0))

        return self._gradient(parts)

    def average_pool(self) -> Function:
        """The mean of each window."""
        f = self.f

        def write(place: Value, inside: Value, taps: Value, count: Value) -> None:
            number = f.emit(self.kind, f"sitofp {count} to {self.kind}")

            def body(vector: str, offset: Value) -> None:
                total, source = f.variable(f.constant(vector, 0)), f.at(self.x, inside, offset)
                with f.loop(0, count) as t:
                    total.set(total.get() + f.load(vector, f.at(source, self._tap(taps, t)), self.itemsize))
                f.store(total.get() / f.splat(vector, number), f.at(self.out, place, offset), self.itemsize)

            self._each_channel(body)

        return self._over_windows(write)

    def average_pool_gradient(self) -> Function:
        """An equal share of `g` at each element of its window."""
        f = self.f

        def parts(vector: str, slope: Value, x: Value, taps: Value, count: Value) -> Callable[[Value], Value]:
            share = slope / f.splat(vector, f.emit(self.kind, f"sitofp {count} to {self.kind}"))
            return lambda t: share

        return self._gradient(parts)

    def _gradient(self, parts: Callable[[str, Value, Value, Value, Value], Callable[[Value], Value]]) -> Function:
        """What ``parts(vector type, slope, window of x, taps, their count)`` gives a tap, by its number."""
        f = self.f

        def write(place: Value, inside: Value, taps: Value, count: Value) -> None:
            def body(vector: str, offset: Value) -> None:
                slope = f.load(vector, f.at(self.g, place, offset), self.itemsize)
                part = parts(vector, slope, f.at(self.x, inside, offset), taps, count)
                target = f.at(self.out, inside, offset)
                several = self.add > 0
                for shared, block in ((True, f.when), (False, f.unless)):
                    with block(several), f.loop(0, count) as t:
                        self._put(part(t), f.at(target, self._tap(taps, t)), shared)

            self._each_channel(body)

        return self._over_images(write)

    def _over_windows(self, write: Callable[[Value, Value, Value, Value], None]) -> Function:
        """Call ``write(place of the result, place in x, taps, their number)``, places in bytes, for each window."""
        f = self.f
        with f.loop(f["start"], f["stop"]) as number:
            image = number // self.count
            self._window(image, number - image * self.count, write)
        return f

    def _over_images(self, write: Callable[[Value, Value, Value, Value], None]) -> Function:
        """The same for each window of some images, whose part of `out` is cleared first if need be."""
        f = self.f
        with f.loop(f["start"], f["stop"]) as image:
            with f.when(self.clear > 0):
                f.declarations.add("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
                place = f.at(self.out, image * self.image)
                f.call("@llvm.memset.p0.i64", place, f.constant("i8", 0), self.image, f.constant("i1", 0))
            with f.loop(0, self.count) as window:
                self._window(image, window, write)
        return f

    def _window(self, image: Value, window: Value, write: Callable[[Value, Value, Value, Value], None]) -> None:
        f = self.f
        entry = f.at(self.windows, window * 24)
        place = (image * self.count + window) * self.channels * self.itemsize
        inside = image * self.image + f.field(entry, 0)
        write(place, inside, f.at(self.taps, f.field(entry, 1)), f.field(entry, 2))

    def _each_channel(self, body: _Body) -> None:
        """Call ``body(vector type, offset in bytes)`` for vectors of channels, then for those that are left."""
        f = self.f
        whole = self.channels // self.lanes * self.lanes
        with f.loop(0, whole, self.lanes) as channel:
            body(f"<{self.lanes} x {self.kind}>", channel * self.itemsize)
        with f.loop(whole, self.channels) as channel:
            body(f"<1 x {self.kind}>", channel * self.itemsize)

    def _tap(self, taps: Value, t: Value) -> Value:
        return self.f.load("i64", self.f.at(taps, t * 8), 8)

    def _largest(self, vector: str, x: Value, taps: Value, count: Value) -> tuple[ir.Variable, ir.Variable]:
        """The largest of the elements, the first of equal ones or the first nan; and the number of its tap."""
        f = self.f
        numbers = vector.replace("float", "i32").replace("double", "i64")
        best = f.variable(f.load(vector, f.at(x, self._tap(taps, f.integer(0))), self.itemsize))
        where = f.variable(f.constant(numbers, 0))
        with f.loop(1, count) as t:
            value, old = f.load(vector, f.at(x, self._tap(taps, t)), self.itemsize), best.get()
            truth = (value > old).type
            nan = f.emit(truth, f"fcmp uno {value}, {value.name}") & f.emit(truth, f"fcmp ord {old}, {old.name}")
            better = (value > old) | nan
            best.set(f.select(better, value, old))
            where.set(f.select(better, self._number(numbers, t), where.get()))
        return best, where

    def _number(self, numbers: str, t: Value) -> Value:
        f = self.f
        narrow = f.emit("i32", f"trunc {t} to i32") if self.kind == "float" else t
        return f.splat(numbers, narrow)

    def _is(self, where: Value, t: Value) -> Value:
        return where.equals(self._number(where.type, t))

    def _put(self, value: Value, place: Value, shared: bool) -> None:
        f = self.f
        f.store(f.load(value.type, place, self.itemsize) + value if shared else value, place, self.itemsize)
