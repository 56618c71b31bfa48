"""The machine code of sums over the rows of a matrix, one for each column: moments, and what their gradients need."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from disttensor.kernels import ir, machine
from disttensor.kernels.ir import Function, Value

ARGUMENTS = ("first", "second", "partial", "x", "g", "mean", "rows", "columns", "block", "blocks")
"""What all functions take: of each matrix of a stack, two results of `columns` numbers, and two partial ones for each
of its `blocks` blocks of `block` rows."""

_SIDE_BY_SIDE = 4
"""Partial sums of a column, so that an addition need not wait for the one before."""


@functools.cache
def functions(kind: str) -> Mapping[str, int]:
    """The addresses of the functions for "float" or "double".

    `moments` and `products` compute the partial results of blocks [start, stop), counted through the stack;
    `combine_moments` and `combine_products` put those of matrices [start, stop) together, in their order.
    """
    return machine.load(ir.written("moments", functools.partial(_text, kind), kind, machine.vector_bytes()))


def _text(kind: str) -> str:
    names = ("moments", "combine_moments", "products", "combine_products")
    return ir.module([getattr(_Sums(name, kind), name)() for name in names])


class _Sums:
    """One function in the making."""

    def __init__(self, name: str, kind: str):
        self.kind, self.itemsize = kind, {"float": 4, "double": 8}[kind]
        self.lanes = machine.vector_bytes() // self.itemsize
        self.f = Function(name, [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
        block = self.f["arguments"]
        self.a = {n: self.f.field(block, i, "ptr" if i < 6 else "i64") for i, n in enumerate(ARGUMENTS)}
        self.line = self.a["columns"] * self.itemsize

    def moments(self) -> Function:
        """Of each block the sum, and the sum of squares of distances from the block's own mean."""
        f = self.f

        def body(vector: str, offset: Value, matrix: Value, first: Value, count: Value, partial: Value) -> None:
            x = f.at(self.a["x"], first * self.line, offset)
            total = self._sum(vector, count, lambda row: self._load(vector, x, row))
            mean = total / self._number(vector, count)

            def squared(row: Value) -> Value:
                distance = self._load(vector, x, row) - mean
                return distance * distance

            f.store(total, f.at(partial, offset), self.itemsize)
            f.store(self._sum(vector, count, squared), f.at(partial, self.line, offset), self.itemsize)

        return self._each_block(body)

    def combine_moments(self) -> Function:
        """Mean and variance: Σ (squares + rows·d²) / rows, d being a block's mean less that of all."""
        f = self.f

        def body(vector: str, offset: Value, matrix: Value, partials: Value) -> None:
            rows = self._number(vector, self.a["rows"])
            mean = self._total(vector, partials, offset) / rows
            squares = f.variable(f.constant(vector, 0))
            with f.loop(0, self.a["blocks"]) as block:
                partial = f.at(partials, block * 2 * self.line, offset)
                left = self.a["rows"] - block * self.a["block"]
                count = self._number(vector, f.minimum(left, self.a["block"]))
                distance = f.load(vector, partial, self.itemsize) / count - mean
                own = f.load(vector, f.at(partial, self.line), self.itemsize)
                squares.set(squares.get() + (own + distance * distance * count))
            f.store(mean, f.at(self.a["first"], matrix * self.line, offset), self.itemsize)
            f.store(squares.get() / rows, f.at(self.a["second"], matrix * self.line, offset), self.itemsize)

        return self._each_matrix(body)

    def products(self) -> Function:
        """Of each block the sums of g and of g · (x − mean)."""
        f = self.f

        def body(vector: str, offset: Value, matrix: Value, first: Value, count: Value, partial: Value) -> None:
            x, g = f.at(self.a["x"], first * self.line, offset), f.at(self.a["g"], first * self.line, offset)
            mean = f.load(vector, f.at(self.a["mean"], matrix * self.line, offset), self.itemsize)

            def product(row: Value) -> Value:
                return self._load(vector, g, row) * (self._load(vector, x, row) - mean)

            f.store(
                self._sum(vector, count, lambda row: self._load(vector, g, row)), f.at(partial, offset), self.itemsize
            )
            f.store(self._sum(vector, count, product), f.at(partial, self.line, offset), self.itemsize)

        return self._each_block(body)

    def combine_products(self) -> Function:
        """Both sums."""
        f = self.f

        def body(vector: str, offset: Value, matrix: Value, partials: Value) -> None:
            for result, start in (("first", partials), ("second", f.at(partials, self.line))):
                place = f.at(self.a[result], matrix * self.line, offset)
                f.store(self._total(vector, start, offset), place, self.itemsize)

        return self._each_matrix(body)

    def _each_block(self, body: Callable[[str, Value, Value, Value, Value, Value], None]) -> Function:
        """Call ``body(vector type, offset, matrix, first row, rows, where the partial results go)``."""
        f = self.f
        with f.loop(f["start"], f["stop"]) as block:
            matrix = block // self.a["blocks"]
            inside = (block - matrix * self.a["blocks"]) * self.a["block"]
            count = f.minimum(self.a["rows"] - inside, self.a["block"])
            first = matrix * self.a["rows"] + inside
            partial = f.at(self.a["partial"], block * 2 * self.line)
            self._each_column(lambda vector, offset: body(vector, offset, matrix, first, count, partial))  # noqa: B023
        return f

    def _each_matrix(self, body: Callable[[str, Value, Value, Value], None]) -> Function:
        """Call ``body(vector type, offset, matrix, where the partial results of its blocks begin)``."""
        f = self.f
        with f.loop(f["start"], f["stop"]) as matrix:
            partials = f.at(self.a["partial"], matrix * self.a["blocks"] * 2 * self.line)
            self._each_column(lambda vector, offset: body(vector, offset, matrix, partials))  # noqa: B023
        return f

    def _each_column(self, body: Callable[[str, Value], None]) -> None:
        """Call ``body(vector type, offset in bytes)`` for vectors of columns, then for those that are left."""
        f, columns = self.f, self.a["columns"]
        whole = columns // self.lanes * self.lanes
        with f.loop(0, whole, self.lanes) as column:
            body(f"<{self.lanes} x {self.kind}>", column * self.itemsize)
        with f.loop(whole, columns) as column:
            body(f"<1 x {self.kind}>", column * self.itemsize)

    def _sum(self, vector: str, count: Value, term: Callable[[Value], Value]) -> Value:
        """The sum of a term for each row of a block."""
        f = self.f
        sums = [f.variable(f.constant(vector, 0)) for _ in range(_SIDE_BY_SIDE)]
        whole = count // _SIDE_BY_SIDE * _SIDE_BY_SIDE
        with f.loop(0, whole, _SIDE_BY_SIDE) as row:
            for number, total in enumerate(sums):
                total.set(total.get() + term(row + number))
        with f.loop(whole, count) as row:
            sums[0].set(sums[0].get() + term(row))
        a, b, c, d = (total.get() for total in sums)
        return (a + b) + (c + d)

    def _total(self, vector: str, partial: Value, offset: Value) -> Value:
        """The sum of the blocks' partial results."""
        f = self.f
        total = f.variable(f.constant(vector, 0))
        with f.loop(0, self.a["blocks"]) as block:
            total.set(total.get() + f.load(vector, f.at(partial, block * 2 * self.line, offset), self.itemsize))
        return total.get()

    def _load(self, vector: str, start: Value, row: Value) -> Value:
        return self.f.load(vector, self.f.at(start, row * self.line), self.itemsize)

    def _number(self, vector: str, count: Value) -> Value:
        return self.f.splat(vector, self.f.emit(self.kind, f"sitofp {count} to {self.kind}"))
