"""Attention in LLVM IR: one block of queries of one head at a time, from scores to results within a core's cache.

Products are calls of `disttensor.kernels.gemm_ir`'s `multiply`, whose address comes with the arguments. Between them
are passes over rows of scores, 16 numbers at a time whatever the width of vectors, so that sums have the same bits
everywhere. Rows are padded with −∞, which is also what a query sees of a masked key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from disttensor.kernels.gemm_ir import Shape
from disttensor.kernels.ir import Function, Value
from disttensor.kernels.transcendental_ir import exponential

LANES = 16
"""Numbers that are worked on together; rows of scores are padded to a multiple."""

ARRAYS = ("q", "k", "v", "g", "lse", "delta", "extra", "out", "dq", "dk", "dv")
FIELDS = [
    *ARRAYS, *(f"{a}_{axis}" for a in ARRAYS for axis in ("batch", "row", "head")), "extra_key", "extra_kind",
    "heads", "queries", "keys", "size", "value_size", "block", "blocks", "causal", "scale", "multiply",
]  # fmt: skip
"""The arguments of both kernels: arrays, their strides in bytes, sizes; unused ones are 0. `extra_kind` is 1 for a mask
and 2 for a bias; the float `scale` is a double, and `block` the number of queries in a block."""


def _reduced(f: Function, vectors: Sequence[Value], combine: Callable[[Value, Value], Value]) -> Value:
    """All of 16 numbers combined, always along the same tree."""
    parts = list(vectors)
    while len(parts) > 1:
        half = len(parts) // 2
        parts = [combine(a, b) for a, b in zip(parts[:half], parts[half:], strict=True)]
    (total,) = parts
    lanes = f.lanes(total.type)
    distance = lanes // 2
    while distance:
        total = combine(total, f.shuffle(total, total, [(i + distance) % lanes for i in range(lanes)]))
        distance //= 2
    return f.emit(total.type.partition(" x ")[2][:-1], f"extractelement {total}, i32 0")


class _Rows:
    """Passes over rows of scores within a function."""

    def __init__(self, f: Function, shape: Shape):
        self.f, self.shape = f, shape
        self.size, self.vector = shape.itemsize, shape.vector
        self.offsets = [lane * self.size for lane in range(0, LANES, shape.lanes)]

    def splat(self, value: Value) -> Value:
        """A number in all lanes."""
        return self.f.splat(self.vector, value)

    def load(self, row: Value, first: Value) -> list[Value]:
        """16 numbers of a row."""
        return [self.f.load(self.vector, self.f.at(row, first * self.size, o), self.size) for o in self.offsets]

    def store(self, row: Value, first: Value, values: Sequence[Value]) -> None:
        """Write 16 numbers of a row."""
        for offset, value in zip(self.offsets, values, strict=True):
            self.f.store(value, self.f.at(row, first * self.size, offset), self.size)

    def each_vector(self, width: Value, body: Callable[[Value, Value | None], None]) -> None:
        """Write what is to be done at the place of each vector of a row; the last may be partial, and has a mask."""
        f, lanes = self.f, self.shape.lanes
        whole = width // lanes * lanes
        with f.loop(0, whole, lanes) as first:
            body(first * self.size, None)
        with f.when(whole < width):
            body(whole * self.size, f.first_lanes(lanes, width - whole))

    def one(self, value: float) -> Value:
        """A number."""
        return self.f.constant(self.shape.scalar, value)

    def prepare(self, row: Value, seen: Value, scale: Value, a: dict[str, Value], extra: Value) -> Value:
        """Scale a row of products, apply mask or bias, and put −∞ behind the keys that the query sees.

        Returns how far the row is ready: to the next multiple of 16 behind what is seen.
        """
        f, size = self.f, self.size
        factor, last = self.splat(scale), seen // LANES * LANES
        end = (seen + (LANES - 1)) // LANES * LANES
        with f.loop(0, end, LANES) as first:
            self.store(row, first, [v * factor for v in self.load(row, first)])
        is_mask, is_bias = a["extra_kind"].equals(1), a["extra_kind"].equals(2)
        with f.when(is_mask):
            whole = f.select(a["extra_key"].equals(1), last, 0)
            with f.loop(0, whole, LANES) as first:
                self.store(row, first, self._masked(self.load(row, first), f.at(extra, first)))
            with f.loop(whole, seen) as key:
                byte = f.load("i8", f.at(extra, key * a["extra_key"]), 1)
                with f.when(byte.equals(0)):
                    f.store(self.one(-math.inf), f.at(row, key * size), size)
        with f.when(is_bias):
            whole = f.select(a["extra_key"].equals(size), last, 0)
            with f.loop(0, whole, LANES) as first:
                pairs = zip(self.load(row, first), self.load(extra, first), strict=True)
                self.store(row, first, [v + bias for v, bias in pairs])
            with f.loop(whole, seen) as key:
                place = f.at(row, key * size)
                bias = f.load(self.shape.scalar, f.at(extra, key * a["extra_key"]), size)
                f.store(f.load(self.shape.scalar, place, size) + bias, place, size)
        with f.loop(seen, end) as key:
            f.store(self.one(-math.inf), f.at(row, key * size), size)
        return end

    def _masked(self, values: Sequence[Value], mask: Value) -> list[Value]:
        """16 numbers, −∞ where a mask has the byte 0."""
        f, blind = self.f, self.f.constant(self.vector, -math.inf)
        lanes = self.shape.lanes
        masks = [f.load(f"<{lanes} x i8>", f.at(mask, lane), 1) for lane in range(0, LANES, lanes)]
        return [f.select(m._compare("ne", 0), v, blind) for v, m in zip(values, masks, strict=True)]

    def clear(self, row: Value, first: Value, end: Value) -> None:
        """Zeros in a stretch of a row whose ends are multiples of 16."""
        with self.f.loop(first, end, LANES) as place:
            self.store(row, place, [self.f.constant(self.vector, 0)] * len(self.offsets))


def _start(name: str, shape: Shape) -> tuple[Function, dict[str, Value], _Rows]:
    f = Function(name, [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
    kinds = {**dict.fromkeys(ARRAYS, "ptr"), "scale": "double", "multiply": "ptr"}
    a = {field: f.field(f["arguments"], i, kinds.get(field, "i64")) for i, field in enumerate(FIELDS)}
    if shape.scalar == "float":
        a["scale"] = f.emit("float", f"fptrunc {a['scale']} to float")
    return f, a, _Rows(f, shape)


def _place(f: Function, a: dict[str, Value], array: str, batch: Value, row: Value, head: Value) -> Value:
    return f.at(a[array], batch * a[f"{array}_batch"], row * a[f"{array}_row"], head * a[f"{array}_head"])


class _Block:
    """A block of queries of one head: addresses, sizes, and its scores."""

    def __init__(self, f: Function, a: dict[str, Value], rows: _Rows, batch: Value, head: Value, top: Value):
        self.f, self.a, self.rows = f, a, rows
        self.batch, self.head, self.top = batch, head, top
        self.count = f.minimum(a["queries"] - top, a["block"])
        # A block's queries see no key after that of the last one.
        self.keys = f.select(a["causal"] > 0, f.minimum(top + self.count, a["keys"]), a["keys"])
        self.padded = (self.keys + (LANES - 1)) // LANES * LANES
        self.row_bytes = (a["keys"] + (2 * LANES - 1)) // LANES * (LANES * rows.size)

    def of(self, array: str, row: Value | int = 0) -> Value:
        """Where a row of this head begins in an array."""
        row = row if isinstance(row, Value) else self.f.integer(row)
        return _place(self.f, self.a, array, self.batch, row, self.head)

    def multiply(
        self, out: tuple[Value, Any], x: tuple[Value, Any, Any], y: tuple[Value, Any, Any], sizes: tuple[Any, ...],
        add: int = 0,
    ) -> None:  # fmt: skip
        """A product of matrices, given as addresses with strides."""
        self.f.call(self.a["multiply"].name, *out, *x, *y, *sizes, add)

    def products(self, to: Value, left: str, right: str, size: str) -> None:
        """The products of rows of this block with rows of keys."""
        x = (self.of(left, self.top), self.a[f"{left}_row"], self.rows.size)
        y = (self.of(right), self.rows.size, self.a[f"{right}_row"])
        self.multiply((to, self.row_bytes), x, y, (self.count, self.keys, self.a[size]))

    def prepare(self, row: Value, number: Value) -> Value:
        """See `_Rows.prepare`."""
        query = self.top + number
        seen = self.f.select(self.a["causal"] > 0, self.f.minimum(query + 1, self.keys), self.keys)
        return self.rows.prepare(row, seen, self.a["scale"], self.a, self.of("extra", query))


def _memory(f: Function, a: dict[str, Value], rows: _Rows, matrices: int) -> tuple[Value, list[Value]]:
    """Memory to be freed, and in it room for blocks of scores."""
    one = f.minimum(a["queries"], a["block"]) * ((a["keys"] + (2 * LANES - 1)) // LANES * (LANES * rows.size))
    memory = f.emit("ptr", f"call ptr @malloc(i64 {(one * matrices + 64).name})")
    aligned = f.at(memory, f.integer(0) - f.emit("i64", f"ptrtoint {memory} to i64") & f.integer(63))
    return memory, [f.at(aligned, one * i) for i in range(matrices)]


def forward(shape: Shape) -> Function:
    """The native kernel of attention; its work is (batch, head, block of queries)."""
    f, a, rows = _start("attention", shape)
    size = rows.size
    memory, (scores,) = _memory(f, a, rows, 1)
    with f.loop(f["start"], f["stop"]) as item:
        of_head = item // a["blocks"]
        top = (item - of_head * a["blocks"]) * a["block"]
        batch = of_head // a["heads"]
        block = _Block(f, a, rows, batch, of_head - batch * a["heads"], top)
        block.products(scores, "q", "k", "size")
        with f.loop(0, block.count) as number:
            row = f.at(scores, number * block.row_bytes)
            end = block.prepare(row, number)
            least = f.constant(shape.vector, -3.4028234663852886e38 if size == 4 else -1.7976931348623157e308)
            highest = [f.variable(least) for _ in rows.offsets]
            with f.loop(0, end, LANES) as first:
                for running, value in zip(highest, rows.load(row, first), strict=True):
                    running.set(f.select(running.get() > value, running.get(), value))
            top_score = _reduced(f, [h.get() for h in highest], lambda x, y: f.select(x > y, x, y))
            base = rows.splat(top_score)
            sums = [f.variable(f.constant(shape.vector, 0)) for _ in rows.offsets]
            with f.loop(0, end, LANES) as first:
                found = [exponential(f, v - base) for v in rows.load(row, first)]
                rows.store(row, first, found)
                for running, value in zip(sums, found, strict=True):
                    running.set(running.get() + value)
            rows.clear(row, end, block.padded)
            total = _reduced(f, [s.get() for s in sums], lambda x, y: x + y)
            is_blind = total.equals(0)
            divisor = f.select(is_blind, rows.one(1), total)
            shift = f.select(is_blind, rows.one(0), top_score)
            # The sum is kept behind the row until the values are weighted.
            f.store(divisor, f.at(row, block.row_bytes - size), size)
            f.store(shift + f.unary("log", divisor), block.of("lse", top + number), size)
        block.multiply(
            (block.of("out", top), a["out_row"]), (scores, block.row_bytes, size), (block.of("v"), a["v_row"], size),
            (block.count, a["value_size"], block.keys),
        )  # fmt: skip
        with f.loop(0, block.count) as number:
            divisor = f.load(shape.scalar, f.at(scores, number * block.row_bytes, block.row_bytes - size), size)
            row, divisors = block.of("out", top + number), rows.splat(divisor)

            def divide(place: Value, mask: Value | None, row: Value = row, divisors: Value = divisors) -> None:
                at = f.at(row, place)
                f.store_some(f.load_some(shape.vector, at, mask, size) / divisors, at, mask, size)

            rows.each_vector(a["value_size"], divide)
    f.line(f"call void @free({memory})")
    return f


def backward(shape: Shape) -> Function:
    """The native kernel of the gradient; its work is (batch, head)."""
    f, a, rows = _start("attention_gradient", shape)
    size = rows.size
    memory, (scores, slopes) = _memory(f, a, rows, 2)
    with f.loop(f["start"], f["stop"]) as item:
        batch = item // a["heads"]
        head = item - batch * a["heads"]
        with f.loop(0, a["keys"]) as key:
            for array, width in (("dk", "size"), ("dv", "value_size")):
                row, zeros = _place(f, a, array, batch, key, head), f.constant(shape.vector, 0)

                def clear(place: Value, mask: Value | None, row: Value = row, zeros: Value = zeros) -> None:
                    f.store_some(zeros, f.at(row, place), mask, size)

                rows.each_vector(a[width], clear)
        with f.loop(0, a["queries"], a["block"]) as top:
            _differentiate(_Block(f, a, rows, batch, head, top), scores, slopes)
    f.line(f"call void @free({memory})")
    return f


def _differentiate(block: _Block, scores: Value, slopes: Value) -> None:
    """What a block of queries adds to the gradients."""
    f, a, rows, top, size = block.f, block.a, block.rows, block.top, block.rows.size
    block.products(scores, "q", "k", "size")
    block.products(slopes, "g", "v", "value_size")
    with f.loop(0, block.count) as number:
        row, slope = f.at(scores, number * block.row_bytes), f.at(slopes, number * block.row_bytes)
        end = block.prepare(row, number)
        lse, delta = (rows.splat(f.load(rows.shape.scalar, block.of(n, top + number), size)) for n in ("lse", "delta"))
        factor = rows.splat(a["scale"])
        with f.loop(0, end, LANES) as first:
            p = [exponential(f, v - lse) for v in rows.load(row, first)]
            rows.store(row, first, p)
            d = [x * (y - delta) * factor for x, y in zip(p, rows.load(slope, first), strict=True)]
            rows.store(slope, first, d)
        for array in (row, slope):
            rows.clear(array, end, block.padded)
    by_keys, by_queries = (size, block.row_bytes), (block.row_bytes, size)
    turned = (block.keys, a["value_size"], block.count), (block.keys, a["size"], block.count)
    block.multiply(
        (block.of("dv"), a["dv_row"]), (scores, *by_keys), (block.of("g", top), a["g_row"], size), turned[0], 1
    )  # fmt: skip
    block.multiply(
        (block.of("dk"), a["dk_row"]), (slopes, *by_keys), (block.of("q", top), a["q_row"], size), turned[1], 1
    )  # fmt: skip
    block.multiply(
        (block.of("dq", top), a["dq_row"]), (slopes, *by_queries), (block.of("k"), a["k_row"], size),
        (block.count, a["size"], block.keys),
    )  # fmt: skip


def functions(shape: Shape) -> tuple[list[Function], str]:
    """Both kernels, and the lines that they need in front of them."""
    return [forward(shape), backward(shape)], "declare noalias ptr @malloc(i64)\ndeclare void @free(ptr)"
