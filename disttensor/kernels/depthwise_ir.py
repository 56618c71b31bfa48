"""The machine code of depthwise convolutions: each channel by itself, in vectors of channels that stay in registers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

from disttensor.kernels import ir, machine
from disttensor.kernels.ir import Function, Value

CONVOLVE = ("out", "x", "kernel", "row_starts", "row_taps", "column_starts", "column_taps")
CORRELATE = ("out", "x", "g", "row_starts", "row_taps", "column_taps")
SIZES = {
    "convolve": ("rows", "columns", "channels", "image"),
    "correlate": ("rows", "channels", "image", "slopes", "line", "step", "part", "window"),
}
"""What the functions take behind their arrays. Everything in bytes but the numbers of rows, columns and channels.

Taps are pairs of bytes: where it is in the image, and in the kernel. Those of row i are numbers `row_starts[i]` to
`row_starts[i + 1]`. To `correlate`, a column of the kernel is four numbers: the first and the end of the bytes of the
slopes that it meets, where it meets the first in the image, and where it is in the kernel.
"""

_SIDE_BY_SIDE = 4
"""Vectors of channels that are computed at once."""


@functools.cache
def functions(kind: str) -> Mapping[str, int]:
    """The addresses of the functions for "float" or "double".

    `convolve` makes rows [start, stop) of the results, counted through all images; `correlate` the parts of images
    [start, stop) in the gradient of the kernel.
    """
    return machine.load(ir.written("depthwise", functools.partial(_text, kind), kind, machine.vector_bytes()))


def _text(kind: str) -> str:
    convolve = _Channels("convolve", CONVOLVE, kind)
    correlate = _Channels("correlate", CORRELATE, kind)
    return ir.module([convolve.convolve(), correlate.correlate()])


class _Channels:
    """One function in the making."""

    def __init__(self, name: str, arrays: Sequence[str], kind: str):
        self.kind, self.itemsize = kind, {"float": 4, "double": 8}[kind]
        self.lanes = machine.vector_bytes() // self.itemsize
        self.f = f = Function(name, [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
        self.a = {n: f.field(f["arguments"], i, "ptr") for i, n in enumerate(arrays)}
        self.a |= {n: f.field(f["arguments"], i) for i, n in enumerate(SIZES[name], len(arrays))}
        self.pixel = self.a["channels"] * self.itemsize

    def convolve(self) -> Function:
        """Σ image · kernel over the taps of a row and those of a column."""
        f, a = self.f, self.a
        with f.loop(f["start"], f["stop"]) as task:
            image = task // a["rows"]
            row = task - image * a["rows"]
            x = f.at(a["x"], image * a["image"])
            first_row, last_row = self._number("row_starts", row), self._number("row_starts", row + 1)
            line = f.at(a["out"], task * a["columns"] * self.pixel)
            with f.loop(0, a["columns"]) as column:
                first, last = self._number("column_starts", column), self._number("column_starts", column + 1)
                out = f.at(line, column * self.pixel)

                def body(vectors: Sequence[str], offsets: Sequence[Value]) -> None:
                    sums = [f.variable(f.constant(vector, 0)) for vector in vectors]
                    with f.loop(first_row, last_row) as down:  # noqa: B023
                        x_row, kernel_row = self._tap("row_taps", down, x, a["kernel"])  # noqa: B023
                        with f.loop(first, last) as across:  # noqa: B023
                            values, weights = self._tap("column_taps", across, x_row, kernel_row)
                            for total, vector, offset in zip(sums, vectors, offsets, strict=True):
                                value = self._load(vector, values, offset)
                                total.set(total.get() + value * self._load(vector, weights, offset))
                    for total, offset in zip(sums, offsets, strict=True):
                        f.store(total.get(), f.at(out, offset), self.itemsize)  # noqa: B023

                self._each_channel(body)
        return f

    def correlate(self) -> Function:
        """Σ image · slopes over the places that an element of the kernel meets, row by row."""
        f, a = self.f, self.a
        with f.loop(f["start"], f["stop"]) as image:
            x, g, out = (f.at(a[n], image * a[size]) for n, size in (("x", "image"), ("g", "slopes"), ("out", "part")))
            f.zero(out, a["part"])
            with f.loop(0, a["rows"]) as row:
                slopes = f.at(g, row * a["line"])
                with f.loop(self._number("row_starts", row), self._number("row_starts", row + 1)) as down:
                    x_row, out_row = self._tap("row_taps", down, x, out)
                    with f.loop(0, a["window"]) as across:
                        first, end, met, place = (self._number("column_taps", across * 4 + i) for i in range(4))

                        def body(vectors: Sequence[str], offsets: Sequence[Value]) -> None:
                            places = [f.at(out_row, place, offset) for offset in offsets]  # noqa: B023
                            sums = [
                                f.variable(f.load(vector, at, self.itemsize))
                                for vector, at in zip(vectors, places, strict=True)
                            ]
                            at_image = f.variable(f.at(x_row, met))  # noqa: B023
                            with f.loop(first, end, self.pixel) as at_slope:  # noqa: B023
                                values, weights = at_image.get(), f.at(slopes, at_slope)  # noqa: B023
                                for total, vector, offset in zip(sums, vectors, offsets, strict=True):
                                    value = self._load(vector, values, offset)
                                    total.set(total.get() + value * self._load(vector, weights, offset))
                                at_image.set(f.at(values, a["step"]))
                            for total, at in zip(sums, places, strict=True):
                                f.store(total.get(), at, self.itemsize)

                        self._each_channel(body)
        return f

    def _each_channel(self, body: Callable[[Sequence[str], Sequence[Value]], None]) -> None:
        """Call ``body(vector types, their offsets in bytes)`` for several vectors, for one, and for single channels."""
        f, done = self.f, self.f.integer(0)
        for count, lanes in ((_SIDE_BY_SIDE, self.lanes), (1, self.lanes), (1, 1)):
            end = self.a["channels"] // (count * lanes) * (count * lanes)
            with f.loop(done, end, count * lanes) as channel:
                offsets = [(channel + i * lanes) * self.itemsize for i in range(count)]
                body([f"<{lanes} x {self.kind}>"] * count, offsets)
            done = end

    def _number(self, table: str, index: Value) -> Value:
        return self.f.load("i64", self.f.at(self.a[table], index * 8), 8)

    def _tap(self, table: str, number: Value, image: Value, kernel: Value) -> tuple[Value, Value]:
        return (
            self.f.at(image, self._number(table, number * 2)),
            self.f.at(kernel, self._number(table, number * 2 + 1)),
        )

    def _load(self, vector: str, start: Value, offset: Value) -> Value:
        return self.f.load(vector, self.f.at(start, offset), self.itemsize)
