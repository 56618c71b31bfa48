"""Long short-term memory over whole sequences in LLVM IR: for each step one product, then one pass over the gates.

Kernels work on a range of rows of the batch, which are independent. Arrays are contiguous, with axes (batch, steps,
features); a gradient may also be one number for all. Gates are in the order input, forget, candidate, output.
"""

from __future__ import annotations

from collections.abc import Callable

from disttensor.kernels.gemm_ir import Shape
from disttensor.kernels.ir import Function, Value
from disttensor.kernels.transcendental_ir import sigmoid, tanh

_POINTERS = ("h", "c", "gates", "z", "u", "h0", "c0", "mask", "dz", "dh", "dc", "gh", "gc", "gg", "multiply")
FIELDS = [
    *_POINTERS, "mask_batch", "mask_step", "steps", "units", "gh_lone", "gc_lone", "gg_lone",
]  # fmt: skip
"""The arguments of both kernels; unused ones are 0. A gradient is `…_lone` if it is one number for all."""


class _Step:
    """What passes over gates have in common: addresses and vectors."""

    def __init__(self, name: str, shape: Shape):
        self.f = Function(name, [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
        self.shape, self.size, self.vector = shape, shape.itemsize, shape.vector
        arguments = self.f["arguments"]
        self.a = {n: self.f.field(arguments, i, "ptr" if n in _POINTERS else "i64") for i, n in enumerate(FIELDS)}
        self.units, self.steps = self.a["units"], self.a["steps"]
        self.mask: Value | None = None

    def row(self, array: str, features: int, batch: Value, step: Value | None = None) -> Value:
        """Where a row begins in an array of so many times `units` features; without a step, of (batch, features)."""
        place = batch if step is None else batch * self.steps + step
        return self.f.at(self.a[array], place * self.units * (features * self.size))

    def before(self, array: str, initial: str, batch: Value, step: Value) -> Value:
        """Where a row of states before a step begins."""
        f = self.f
        is_first = step.equals(0)
        earlier = self.row(array, 1, batch, f.select(is_first, f.integer(0), step - 1))
        return f.select(is_first, self.row(initial, 1, batch), earlier)

    def strides(self, features: int, with_steps: bool = True) -> Value:
        """From one row of the batch to the next, in bytes."""
        row = self.units * (features * self.size)
        return row * self.steps if with_steps else row

    def is_live(self, batch: Value, step: Value) -> Value:
        """Whether the mask lets a row change at a step."""
        a, f = self.a, self.f
        place = f.at(a["mask"], batch * a["mask_batch"], step * a["mask_step"])
        return f.load("i8", place, 1)._compare("ne", 0)

    def each_vector(self, body: Callable[[Value], None]) -> None:
        """Write what is to be done at the vector of each place of a row, `units` wide; the last may be partial."""
        f, lanes = self.f, self.shape.lanes
        whole = self.units // lanes * lanes
        with f.loop(0, whole, lanes) as first:
            body(first * self.size)
        with f.when(whole < self.units):
            self.mask = f.first_lanes(lanes, self.units - whole)
            body(whole * self.size)
            self.mask = None

    def load(self, row: Value, place: Value, gate: int = 0) -> Value:
        """A vector of a row; of a gate, if the row holds several."""
        return self.f.load_some(self.vector, self._at(row, place, gate), self.mask, self.size)

    def store(self, value: Value, row: Value, place: Value, gate: int = 0) -> None:
        """Write a vector of a row."""
        self.f.store_some(value, self._at(row, place, gate), self.mask, self.size)

    def _at(self, row: Value, place: Value, gate: int) -> Value:
        return self.f.at(row, place, self.units * (gate * self.size) if gate else 0)

    def gradient(self, name: str, features: int, batch: Value, step: Value, place: Value, gate: int = 0) -> Value:
        """A vector of a gradient."""
        f, lone = self.f, self.a[f"{name}_lone"] > 0
        found = f.variable(f.constant(self.vector, 0))
        with f.when(lone):
            found.set(f.splat(self.vector, f.load(self.shape.scalar, self.a[name], self.size)))
        with f.unless(lone):
            found.set(self.load(self.row(name, features, batch, step), place, gate))
        return found.get()

    def zero(self, row: Value, features: int) -> None:
        """Fill a row with zeros."""

        def clear(place: Value) -> None:
            for gate in range(features):
                self.store(self.f.constant(self.vector, 0), row, place, gate)

        self.each_vector(clear)

    def multiply(
        self, out: Value, out_row: Value, x: Value, x_row: Value, y: Value, n: Value, k: Value, add: int
    ) -> None:
        """``out (+)= x @ y`` for the rows of this part; y is contiguous."""
        rows = self.f["stop"] - self.f["start"]
        self.f.call(
            self.a["multiply"].name, out, out_row, x, x_row, self.size, y, n * self.size, self.size, rows, n, k, add
        )  # fmt: skip


def lstm(shape: Shape) -> Function:
    """The native kernel of `disttensor.kernels.recurrent.lstm`; its work is rows of the batch."""
    s = _Step("lstm", shape)
    f, start, stop = s.f, s.f["start"], s.f["stop"]
    with f.loop(0, s.steps) as step:
        state_row = f.select(step.equals(0), s.strides(1, with_steps=False), s.strides(1))
        s.multiply(
            s.row("gates", 4, start, step), s.strides(4), s.before("h", "h0", start, step), state_row, s.a["u"],
            s.units * 4, s.units, 0,
        )  # fmt: skip
        with f.loop(start, stop) as batch:
            gates, z = s.row("gates", 4, batch, step), s.row("z", 4, batch, step)
            h, c = s.row("h", 1, batch, step), s.row("c", 1, batch, step)
            h_before, c_before = s.before("h", "h0", batch, step), s.before("c", "c0", batch, step)
            is_live = s.is_live(batch, step)

            def advance(place: Value, rows: tuple[Value, ...] = (gates, z, h, c, c_before)) -> None:
                gates, z, h, c, c_before = rows
                i, j, g, o = (
                    (tanh if gate == 2 else sigmoid)(f, s.load(z, place, gate) + s.load(gates, place, gate))
                    for gate in range(4)
                )
                cell = j * s.load(c_before, place) + i * g
                for gate, value in enumerate((i, j, g, o)):
                    s.store(value, gates, place, gate)
                s.store(cell, c, place)
                s.store(o * tanh(f, cell), h, place)

            def stay(place: Value, rows: tuple[Value, ...] = (h, c, h_before, c_before)) -> None:
                s.store(s.load(rows[2], place), rows[0], place)
                s.store(s.load(rows[3], place), rows[1], place)

            with f.when(is_live):
                s.each_vector(advance)
            with f.unless(is_live):
                s.zero(gates, 4)
                s.each_vector(stay)
    return f


def lstm_gradient(shape: Shape) -> Function:
    """The native kernel of `disttensor.kernels.recurrent.lstm_gradient`; its work is rows of the batch."""
    s = _Step("lstm_gradient", shape)
    f, start, stop, size = s.f, s.f["start"], s.f["stop"], s.size
    one = f.constant(shape.vector, 1)
    # Weights as the products need them: rows of 4·units come to columns.
    turned = f.emit("ptr", f"call ptr @malloc(i64 {(s.units * s.units * (4 * size) + 64).name})")
    with f.loop(0, s.units) as row, f.loop(0, s.units * 4) as column:
        weight = f.load(shape.scalar, f.at(s.a["u"], (row * 4 * s.units + column) * size), size)
        f.store(weight, f.at(turned, (column * s.units + row) * size), size)
    with f.loop(start, stop) as batch:
        s.zero(s.row("dh", 1, batch), 1)
        s.zero(s.row("dc", 1, batch), 1)
    with f.loop(0, s.steps) as done:
        step = s.steps - 1 - done
        with f.loop(start, stop) as batch:
            gates, dz = s.row("gates", 4, batch, step), s.row("dz", 4, batch, step)
            c, c_before = s.row("c", 1, batch, step), s.before("c", "c0", batch, step)
            dh, dc = s.row("dh", 1, batch), s.row("dc", 1, batch)
            is_live = s.is_live(batch, step)

            def retreat(
                place: Value,
                batch: Value = batch,
                step: Value = step,
                rows: tuple[Value, ...] = (gates, dz, c, c_before, dh, dc),
            ) -> None:
                gates, dz, c, c_before, dh, dc = rows
                i, j, g, o = (s.load(gates, place, gate) for gate in range(4))
                bent = tanh(f, s.load(c, place))
                of_h = s.load(dh, place) + s.gradient("gh", 1, batch, step, place)
                of_c = s.load(dc, place) + s.gradient("gc", 1, batch, step, place) + of_h * o * (one - bent * bent)
                slopes = [i * (one - i), j * (one - j), one - g * g, o * (one - o)]
                for gate, value in enumerate((of_c * g, of_c * s.load(c_before, place), of_c * i, of_h * bent)):
                    more = s.gradient("gg", 4, batch, step, place, gate)
                    s.store((value + more) * slopes[gate], dz, place, gate)
                s.store(of_c * j, dc, place)
                s.store(f.constant(shape.vector, 0), dh, place)

            def stay(
                place: Value, batch: Value = batch, step: Value = step, rows: tuple[Value, ...] = (dh, dc)
            ) -> None:
                for name, row in zip(("gh", "gc"), rows, strict=True):
                    s.store(s.load(row, place) + s.gradient(name, 1, batch, step, place), row, place)

            with f.when(is_live):
                s.each_vector(retreat)
            with f.unless(is_live):
                s.zero(dz, 4)
                s.each_vector(stay)
        s.multiply(
            s.row("dh", 1, start), s.strides(1, with_steps=False), s.row("dz", 4, start, step), s.strides(4), turned,
            s.units, s.units * 4, 1,
        )  # fmt: skip
    f.line(f"call void @free({turned})")
    return f


def functions(shape: Shape) -> tuple[list[Function], str]:
    """All kernels, and the lines that they need in front of them."""
    return [lstm(shape), lstm_gradient(shape)], "declare noalias ptr @malloc(i64)\ndeclare void @free(ptr)"
