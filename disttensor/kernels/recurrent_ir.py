"""Recurrent cells over whole sequences in LLVM IR: for each step one product, then one pass over the gates.

Kernels work on a range of rows of the batch, which are independent. Weights are packed once for all steps. Arrays are
contiguous, with axes (batch, steps, features); a gradient may also be one number for all. Gates are in the order input,
forget, candidate, output for the LSTM (here), and update, reset, candidate for the GRU (`disttensor.kernels.gru_ir`).
"""

from __future__ import annotations

from collections.abc import Callable

from disttensor.kernels.gemm_ir import Shape
from disttensor.kernels.ir import Function, Value
from disttensor.kernels.transcendental_ir import sigmoid, tanh

_POINTERS = (
    "h", "c", "gates", "z", "u", "bias", "h0", "c0", "mask", "dz", "da", "dh", "dc", "gh", "gc", "gg", "pack",
    "multiply",
)  # fmt: skip
FIELDS = [
    *_POINTERS, "mask_batch", "mask_step", "steps", "units", "gh_lone", "gc_lone", "gg_lone",
]  # fmt: skip
"""The arguments of all kernels; unused ones are 0. A gradient is `…_lone` if it is one number for all. `pack` and
`multiply` are `disttensor.kernels.gemm_ir`'s "pack" and "multiply_packed"."""


class SequenceKernel:
    """A kernel in the making: addresses, vectors, products, and loops over rows."""

    def __init__(self, name: str, shape: Shape):
        self.f = Function(name, [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
        self.shape, self.size, self.vector = shape, shape.itemsize, shape.vector
        self.start, self.stop = self.f["start"], self.f["stop"]
        arguments = self.f["arguments"]
        self.a = {n: self.f.field(arguments, i, "ptr" if n in _POINTERS else "i64") for i, n in enumerate(FIELDS)}
        self.units, self.steps = self.a["units"], self.a["steps"]
        self.mask: Value | None = None
        self._memory: list[Value] = []

    def finish(self) -> Function:
        """The whole function."""
        for memory in self._memory:
            self.f.line(f"call void @free({memory})")
        return self.f

    # --- memory

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

    def gate(self, row: Value, number: int) -> Value:
        """Where a gate begins in a row."""
        return self.f.at(row, self.units * (number * self.size))

    def rows(self, features: int) -> Rows:
        """Memory for rows of so many times `units` features, one for each row of the part, close together."""
        return Rows(self, features)

    def scratch(self, count: Value) -> Value:
        """Memory for so many numbers, until the end."""
        memory = self.f.emit("ptr", f"call ptr @malloc(i64 {(count * self.size + 64).name})")
        self._memory.append(memory)
        return self.f.at(
            memory, self.f.integer(0) - self.f.emit("i64", f"ptrtoint {memory} to i64") & self.f.integer(63)
        )

    # --- products

    def pack(self, gates: int, first: int = 0, count: int | None = None, turned: bool = False) -> Value:
        """Weights of some gates, (units, gates·units), or their transpose, ready for `multiply`."""
        f, count = self.f, gates if count is None else count
        row, column = self.units * (gates * self.size), f.integer(self.size)
        n, k = self.units * count, self.units
        if turned:
            row, column, n, k = column, row, k, n
        to = self.scratch((n + (self.shape.columns - 1)) // self.shape.columns * self.shape.columns * k)
        f.call(self.a["pack"].name, to, self.gate(self.a["u"], first), row, column, n, k)
        return to

    def multiply(
        self, out: tuple[Value, Value], x: tuple[Value, Value], packed: Value, n: Value, k: Value, add: int = 0
    ) -> None:
        """``out (+)= x @ packed`` for the rows of this part; matrices are given as addresses with strides."""
        self.f.call(self.a["multiply"].name, *out, *x, self.size, packed, 0, 0, self.stop - self.start, n, k, add)

    def state(self, step: Value) -> tuple[Value, Value]:
        """The states h before a step, as a matrix."""
        row = self.f.select(step.equals(0), self.strides(1, with_steps=False), self.strides(1))
        return self.before("h", "h0", self.start, step), row

    def matrix(self, array: str, features: int, step: Value | None = None, gate: int = 0) -> tuple[Value, Value]:
        """What an array has for a step, from a gate on, as a matrix."""
        row = self.row(array, features, self.start, step)
        return self.gate(row, gate) if gate else row, self.strides(features, with_steps=step is not None)

    # --- loops

    def each_row(self, body: Callable[[Value], None]) -> None:
        """Do something for each row of the part."""
        with self.f.loop(self.start, self.stop) as batch:
            body(batch)

    def each_live_row(self, step: Value, live: Callable[[Value], None], other: Callable[[Value], None]) -> None:
        """Do one thing for rows that the mask lets change at a step, another for those that keep their state."""
        f = self.f
        with f.loop(self.start, self.stop) as batch:
            place = f.at(self.a["mask"], batch * self.a["mask_batch"], step * self.a["mask_step"])
            is_live = f.load("i8", place, 1)._compare("ne", 0)
            with f.when(is_live):
                live(batch)
            with f.unless(is_live):
                other(batch)

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

    # --- vectors

    def load(self, row: Value, place: Value, gate: int = 0) -> Value:
        """A vector of a row; of a gate, if the row holds several."""
        return self.f.load_some(self.vector, self._at(row, place, gate), self.mask, self.size)

    def store(self, value: Value, row: Value, place: Value, gate: int = 0) -> None:
        """Write a vector of a row."""
        self.f.store_some(value, self._at(row, place, gate), self.mask, self.size)

    def _at(self, row: Value, place: Value, gate: int) -> Value:
        return self.f.at(row, place, self.units * (gate * self.size) if gate else 0)

    def constant(self, number: float) -> Value:
        """A vector of one number."""
        return self.f.constant(self.vector, number)

    def gradient(self, name: str, features: int, batch: Value, step: Value, place: Value, gate: int = 0) -> Value:
        """A vector of a gradient."""
        f, lone = self.f, self.a[f"{name}_lone"] > 0
        found = f.variable(self.constant(0))
        with f.when(lone):
            found.set(f.splat(self.vector, f.load(self.shape.scalar, self.a[name], self.size)))
        with f.unless(lone):
            found.set(self.load(self.row(name, features, batch, step), place, gate))
        return found.get()

    def zero(self, row: Value, features: int) -> None:
        """Fill a row with zeros."""

        def clear(place: Value) -> None:
            for gate in range(features):
                self.store(self.constant(0), row, place, gate)

        self.each_vector(clear)

    def copy(self, source: Value, target: Value) -> None:
        """Copy a row."""
        self.each_vector(lambda place: self.store(self.load(source, place), target, place))

    def keep_gradient(self, name: str, row: Value, batch: Value, step: Value) -> None:
        """Add to the gradient of a state that a step did not change."""
        self.each_vector(
            lambda place: self.store(self.load(row, place) + self.gradient(name, 1, batch, step, place), row, place)
        )


class Rows:
    """Numbers of the present step, a row of so many times `units` for each row of the part.

    Products write to such memory, and read from it. In arrays of (batch, steps, features) the rows of a step lie far
    apart, often at multiples of a page, where only a few of them fit a cache at once.
    """

    def __init__(self, s: SequenceKernel, features: int):
        self._s, self._features = s, features
        self._memory = s.scratch((s.stop - s.start) * s.units * features)

    def row(self, batch: Value) -> Value:
        """Where a row begins."""
        s = self._s
        return s.f.at(self._memory, (batch - s.start) * s.units * (self._features * s.size))

    def matrix(self) -> tuple[Value, Value]:
        """All rows, as a matrix."""
        return self._memory, self._s.strides(self._features, with_steps=False)


def rnn(shape: Shape) -> Function:
    """The native kernel of `disttensor.kernels.recurrent.rnn`."""
    s = SequenceKernel("rnn", shape)
    weights, products = s.pack(1), s.rows(1)
    with s.f.loop(0, s.steps) as step:
        s.multiply(products.matrix(), s.state(step), weights, s.units, s.units)

        def advance(batch: Value, step: Value = step) -> None:
            h, z, product = s.row("h", 1, batch, step), s.row("z", 1, batch, step), products.row(batch)
            s.each_vector(lambda place: s.store(tanh(s.f, s.load(z, place) + s.load(product, place)), h, place))

        def stay(batch: Value, step: Value = step) -> None:
            s.copy(s.before("h", "h0", batch, step), s.row("h", 1, batch, step))

        s.each_live_row(step, advance, stay)
    return s.finish()


def rnn_gradient(shape: Shape) -> Function:
    """The native kernel of `disttensor.kernels.recurrent.rnn_gradient`."""
    s = SequenceKernel("rnn_gradient", shape)
    weights, slopes = s.pack(1, turned=True), s.rows(1)
    s.each_row(lambda batch: s.zero(s.row("dh", 1, batch), 1))
    with s.f.loop(0, s.steps) as done:
        step = s.steps - 1 - done

        def retreat(batch: Value, step: Value = step) -> None:
            h, dz, dh = s.row("h", 1, batch, step), s.row("dz", 1, batch, step), s.row("dh", 1, batch)

            def vector(place: Value) -> None:
                of_h, state = s.load(dh, place) + s.gradient("gh", 1, batch, step, place), s.load(h, place)
                slope = of_h * (s.constant(1) - state * state)
                s.store(slope, dz, place)
                s.store(slope, slopes.row(batch), place)
                s.store(s.constant(0), dh, place)

            s.each_vector(vector)

        def stay(batch: Value, step: Value = step) -> None:
            s.zero(s.row("dz", 1, batch, step), 1)
            s.zero(slopes.row(batch), 1)
            s.keep_gradient("gh", s.row("dh", 1, batch), batch, step)

        s.each_live_row(step, retreat, stay)
        s.multiply(s.matrix("dh", 1), slopes.matrix(), weights, s.units, s.units, 1)
    return s.finish()


def lstm(shape: Shape) -> Function:
    """The native kernel of `disttensor.kernels.recurrent.lstm`."""
    s = SequenceKernel("lstm", shape)
    f, weights, bias, products = s.f, s.pack(4), s.a["bias"], s.rows(4)
    with f.loop(0, s.steps) as step:
        s.multiply(products.matrix(), s.state(step), weights, s.units * 4, s.units)

        def advance(batch: Value, step: Value = step) -> None:
            gates, z, product = s.row("gates", 4, batch, step), s.row("z", 4, batch, step), products.row(batch)
            h, c, c_before = s.row("h", 1, batch, step), s.row("c", 1, batch, step), s.before("c", "c0", batch, step)

            def vector(place: Value) -> None:
                inner = [
                    s.load(z, place, gate) + s.load(bias, place, gate) + s.load(product, place, gate)
                    for gate in range(4)
                ]
                gated = [(tanh if gate == 2 else sigmoid)(f, value) for gate, value in enumerate(inner)]
                i, j, g, _ = gated
                cell = j * s.load(c_before, place) + i * g
                for gate, value in enumerate(gated):
                    s.store(value, gates, place, gate)
                s.store(cell, c, place)

            # In a loop of its own: a processor does not see far enough to begin the next gates during this tangent.
            s.each_vector(vector)
            s.each_vector(lambda place: s.store(s.load(gates, place, 3) * tanh(f, s.load(c, place)), h, place))

        def stay(batch: Value, step: Value = step) -> None:
            s.zero(s.row("gates", 4, batch, step), 4)
            for state in "hc":
                s.copy(s.before(state, f"{state}0", batch, step), s.row(state, 1, batch, step))

        s.each_live_row(step, advance, stay)
    return s.finish()


def lstm_gradient(shape: Shape) -> Function:
    """The native kernel of `disttensor.kernels.recurrent.lstm_gradient`."""
    s = SequenceKernel("lstm_gradient", shape)
    f, one, weights, slopes = s.f, s.constant(1), s.pack(4, turned=True), s.rows(4)
    s.each_row(lambda batch: s.zero(s.row("dh", 1, batch), 1))
    s.each_row(lambda batch: s.zero(s.row("dc", 1, batch), 1))
    with f.loop(0, s.steps) as done:
        step = s.steps - 1 - done

        def retreat(batch: Value, step: Value = step) -> None:
            gates, dz = s.row("gates", 4, batch, step), s.row("dz", 4, batch, step)
            c, c_before = s.row("c", 1, batch, step), s.before("c", "c0", batch, step)
            dh, dc = s.row("dh", 1, batch), s.row("dc", 1, batch)

            def vector(place: Value) -> None:
                i, j, g, o = (s.load(gates, place, gate) for gate in range(4))
                bent = tanh(f, s.load(c, place))
                of_h = s.load(dh, place) + s.gradient("gh", 1, batch, step, place)
                of_c = s.load(dc, place) + s.gradient("gc", 1, batch, step, place) + of_h * o * (one - bent * bent)
                bends = [i * (one - i), j * (one - j), one - g * g, o * (one - o)]
                for gate, value in enumerate((of_c * g, of_c * s.load(c_before, place), of_c * i, of_h * bent)):
                    more = s.gradient("gg", 4, batch, step, place, gate)
                    slope = (value + more) * bends[gate]
                    s.store(slope, dz, place, gate)
                    s.store(slope, slopes.row(batch), place, gate)
                s.store(of_c * j, dc, place)
                s.store(s.constant(0), dh, place)

            s.each_vector(vector)

        def stay(batch: Value, step: Value = step) -> None:
            s.zero(s.row("dz", 4, batch, step), 4)
            s.zero(slopes.row(batch), 4)
            for name in ("h", "c"):
                s.keep_gradient(f"g{name}", s.row(f"d{name}", 1, batch), batch, step)

        s.each_live_row(step, retreat, stay)
        s.multiply(s.matrix("dh", 1), slopes.matrix(), weights, s.units, s.units * 4, 1)
    return s.finish()


HEAD = "declare noalias ptr @malloc(i64)\ndeclare void @free(ptr)"
"""Lines that all kernels need in front of them."""
