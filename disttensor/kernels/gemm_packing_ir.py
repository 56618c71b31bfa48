"""Packing for products of matrices: operands are copied into the order in which tiles read them.

y goes into panels of a tile's width, x into strips of a tile's height, whose numbers lie one column after the other. A
line of the cache is to be read once: so panels and strips that share lines are packed together.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from disttensor.kernels.ir import Function, Value

PANELS_AT_ONCE = 4
"""Panels of y that are packed just before they are used: few, as the block of x is to stay in the cache."""

STRIPS_AT_ONCE = 4
"""Strips of x that are packed together where its columns are contiguous."""


class Shape(NamedTuple):
    """The sizes of tiles for a processor.

    Attributes
    ----------
    scalar : {"float", "double"}
    vector_bytes : int
        Width of a vector register.
    registers : int
        How many there are.
    """

    scalar: str
    vector_bytes: int
    registers: int

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return 4 if self.scalar == "float" else 8

    @property
    def lanes(self) -> int:
        """Elements of a vector."""
        return self.vector_bytes // self.itemsize

    @property
    def vector(self) -> str:
        """The type of a vector."""
        return f"<{self.lanes} x {self.scalar}>"

    @property
    def rows(self) -> int:
        """Rows of the largest tile, which is two vectors wide; two vectors of y and one of x are held besides."""
        return (self.registers - 3) // 2

    @property
    def columns(self) -> int:
        """Columns of a panel of y."""
        return 2 * self.lanes


def pack_panels(shape: Shape) -> Function:
    """Copy rows of y into panels, one after the other: each `columns` wide, rows contiguous, zeros at its right."""
    parameters = [("ptr", "to"), ("ptr", "y"), ("i64", "y_row"), ("i64", "y_column"), ("i64", "depth"), ("i64", "n")]
    f = Function("pack_panels", parameters, "internal noinline")
    size, lanes, width = shape.itemsize, shape.lanes, shape.vector_bytes
    depth, n, y_row, y_column = f["depth"], f["n"], f["y_row"], f["y_column"]
    panel_bytes = depth * (2 * width)

    def rows_contiguous() -> None:
        # Several panels side by side, as memory is read faster in longer runs.
        several = PANELS_AT_ONCE * shape.columns
        wide = n - n._binary("rem", several)
        with f.loop(0, wide, several) as left:
            to = f.at(f["to"], (left // shape.columns) * panel_bytes)
            place = f.at(f["y"], left * size)
            with f.loop(0, depth) as k:
                line, target = f.at(place, k * y_row), f.at(to, k * (2 * width))
                for panel in range(PANELS_AT_ONCE):
                    for number in (0, width):
                        value = f.load(shape.vector, f.at(line, panel * 2 * width + number), size)
                        f.store(value, f.at(target, panel_bytes * panel, number), size)
        with f.loop(wide, n, shape.columns) as left:
            to = f.at(f["to"], (left // shape.columns) * panel_bytes)
            place = f.at(f["y"], left * size)
            masks = [f.first_lanes(lanes, n - left - number) for number in (0, lanes)]
            with f.loop(0, depth) as k:
                line, target = f.at(place, k * y_row), f.at(to, k * (2 * width))
                for number, mask in zip((0, width), masks, strict=True):
                    value = f.load_some(shape.vector, f.at(line, number), mask, size)
                    f.store(value, f.at(target, number), size)

    def any_strides() -> None:
        squares = f.select(y_row.equals(size), depth - depth._binary("rem", lanes), 0)
        with f.loop(0, n, lanes) as left:
            to = f.at(
                f["to"], (left // shape.columns) * panel_bytes, left._binary("rem", shape.columns) * size
            )  # fmt: skip
            place = f.at(f["y"], left * y_column)
            first = f.variable(f.integer(0))
            with f.when(n - left >= lanes):
                # Columns are contiguous: squares are loaded by columns and turned in registers.
                with f.loop(0, squares, lanes) as k:
                    columns = [
                        f.load(shape.vector, f.at(place, k * size, y_column * number), size) for number in range(lanes)
                    ]
                    for number, row in enumerate(_turn(f, columns)):
                        f.store(row, f.at(to, (k + number) * (2 * width)), size)
                first.set(squares)
            with f.loop(first.get(), depth) as k:
                line, target = f.at(place, k * y_row), f.at(to, k * (2 * width))
                count = f.minimum(n - left, lanes)
                with f.loop(0, count) as j:
                    f.store(f.load(shape.scalar, f.at(line, j * y_column), size), f.at(target, j * size), size)
                with f.loop(count, lanes) as j:
                    f.store(f.constant(shape.scalar, 0), f.at(target, j * size), size)

    with f.when(y_column.equals(size)):
        rows_contiguous()
    with f.unless(y_column.equals(size)):
        any_strides()
    return f


def _turn(f: Function, vectors: Sequence[Value]) -> list[Value]:
    """The transpose of a square of vectors: columns become rows."""
    lanes = len(vectors)
    turned = list(vectors)
    distance = 1
    while distance < lanes:
        # Exchange blocks of `distance` across the diagonal of blocks twice as large.
        low = [i if not i & distance else i - distance + lanes for i in range(lanes)]
        high = [i + distance if not i & distance else i + lanes for i in range(lanes)]
        for i in range(lanes):
            if not i & distance:
                a, b = turned[i], turned[i + distance]
                turned[i], turned[i + distance] = f.shuffle(a, b, low), f.shuffle(a, b, high)
        distance *= 2
    return turned


def pack_rows(shape: Shape) -> Function:
    """Copy columns of x into strips: the numbers of one column, then those of the next; `tiles` strips of m rows.

    Whole vectors are stored. What is in excess of a column is overwritten by the next one.
    """
    parameters = [
        ("ptr", "to"), ("ptr", "x"), ("i64", "x_row"), ("i64", "x_column"), ("i64", "m"), ("i64", "depth"),
        ("i64", "tiles"),
    ]  # fmt: skip
    f = Function("pack_rows", parameters, "internal noinline")
    size, lanes, vector = shape.itemsize, shape.lanes, shape.vector
    m, depth, tiles, x_row, x_column = (f[p] for p in ("m", "depth", "tiles", "x_row", "x_column"))
    groups = range(-(-shape.rows // lanes))
    by_rows = x_column.equals(size)
    squares = f.select(by_rows, depth - depth._binary("rem", lanes), 0)

    def columns_contiguous(first: Value, count: int) -> None:
        tops = [m * (first + i) // tiles for i in range(count + 1)]
        heights = [after - top for top, after in itertools.pairwise(tops)]
        targets = [f.at(f["to"], top * depth * size) for top in tops[:count]]
        masks = [[f.first_lanes(lanes, height - lanes * group) for group in groups] for height in heights]

        def column(k: Value, strip: int, group: int) -> tuple[Value, Value]:
            beside = group * shape.vector_bytes
            line = f.at(f["x"], k * x_column, tops[strip] * size, beside)
            return f.load_some(vector, line, masks[strip][group], size), f.at(
                targets[strip], k * heights[strip] * size, beside
            )

        with f.loop(0, depth) as k:
            for strip in range(count):
                for group in groups:
                    f.store(*column(k, strip, group), size)
        # The last column of a strip went beyond its end, over the first of the next.
        for strip in range(1, count):
            for group in groups:
                f.store_some(*column(f.integer(0), strip, group), masks[strip][group], size)

    with f.when(x_row.equals(size)):
        whole = tiles - tiles._binary("rem", STRIPS_AT_ONCE)
        with f.loop(0, whole, STRIPS_AT_ONCE) as tile:
            columns_contiguous(tile, STRIPS_AT_ONCE)
        with f.loop(whole, tiles) as tile:
            columns_contiguous(tile, 1)
    with f.unless(x_row.equals(size)), f.loop(0, tiles) as tile:
        top = m * tile // tiles
        rows = m * (tile + 1) // tiles - top
        to, place = f.at(f["to"], top * depth * size), f.at(f["x"], top * x_row)
        # Rows that a strip lacks are read as its last.
        lines = [f.at(place, f.minimum(f.integer(row), rows - 1) * x_row) for row in range(len(groups) * lanes)]
        with f.loop(0, squares, lanes) as k:
            squared = [
                [f.load(vector, f.at(line, k * size), size) for line in lines[g * lanes :][:lanes]] for g in groups
            ]
            turned = [_turn(f, vectors) for vectors in squared]
            for number in range(lanes):
                for group in groups:
                    target = f.at(to, (k + number) * rows * size, group * shape.vector_bytes)
                    f.store(turned[group][number], target, size)
        with f.loop(squares, depth) as k, f.loop(0, rows) as row:
            value = f.load(shape.scalar, f.at(place, row * x_row, k * x_column), size)
            f.store(value, f.at(to, (k * rows + row) * size), size)
    return f
