"""A sum of products of matrices along a tree in LLVM IR.

The result is computed tile by tile, and each tile for all products in a row: in registers as ever, then in memory that
is as small as the tree is deep, where tiles are added as soon as the tree allows. So sums of short products, whose
results would be written and read again many times, take about as long as one long product.
"""

from __future__ import annotations

from disttensor.kernels.gemm_packing_ir import Shape
from disttensor.kernels.ir import Function, Value, Variable

# Words of a product in a table: where its operands are, their strides in bytes, and how many additions follow it.
X, X_ROW, X_COLUMN, Y, Y_ROW, Y_COLUMN, ADDITIONS = range(7)
PRODUCT_WORDS = ADDITIONS + 1

_FIELDS = ["out", "table", "out_row", "m", "n", "k", "count", "parts", "packs_x", "packs_y", "depth"]


def sum_products(shape: Shape) -> Function:
    """The native kernel: one of `parts` of the result's rows for each number of its extent.

    The fields of its arguments are listed above: the products are `count` entries of `table`, and at most `depth` tiles
    are open at a time. All tiles are of one size. Where x is packed, those of fewer rows have others, of which nothing
    becomes; otherwise the last begins where it ends with the part, which then needs as many rows. A tile whose columns
    are not all there is packed in any case.
    """
    f = Function("sum_products", [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
    a = {p: f.field(f["arguments"], i, "ptr" if i < 2 else "i64") for i, p in enumerate(_FIELDS)}
    size, line, k = shape.itemsize, shape.columns * shape.itemsize, a["k"]
    packs_x = a["packs_x"] > 0
    tile_bytes = shape.rows * line
    highest = (a["m"] + a["parts"] - 1) // a["parts"]
    x_bytes = highest * k * size + 2 * shape.vector_bytes  # of one product, packed, and what goes beyond the end
    y_bytes = k * line
    needed = f.select(packs_x, x_bytes * a["count"], 0) + y_bytes * a["count"] + a["depth"] * tile_bytes + 64
    memory = f.emit("ptr", f"call ptr @malloc(i64 {needed.name})")
    open_tiles = f.at(memory, f.integer(0) - f.emit("i64", f"ptrtoint {memory} to i64") & f.integer(63))
    packed_y = f.at(open_tiles, a["depth"] * tile_bytes)
    packed_x = f.at(packed_y, y_bytes * a["count"])

    def entry(product: Value) -> Value:
        return f.at(a["table"], product * (8 * PRODUCT_WORDS))

    with f.loop(f["start"], f["stop"]) as number:
        first = a["m"] * number // a["parts"]
        height = a["m"] * (number + 1) // a["parts"] - first
        tiles = (height + (shape.rows - 1)) // shape.rows
        with f.when(packs_x), f.loop(0, a["count"]) as product:
            e = entry(product)
            x = f.at(f.field(e, X, "ptr"), first * f.field(e, X_ROW))
            to = f.at(packed_x, product * x_bytes)
            f.call("@pack_rows", to, x, f.field(e, X_ROW), f.field(e, X_COLUMN), height, k, tiles)
        with f.loop(0, a["n"], shape.columns) as left:
            width = f.minimum(a["n"] - left, shape.columns)
            packs_y = (a["packs_y"] > 0) | (width < shape.columns)
            with f.when(packs_y), f.loop(0, a["count"]) as product:
                e = entry(product)
                y = f.at(f.field(e, Y, "ptr"), left * f.field(e, Y_COLUMN))
                to = f.at(packed_y, product * y_bytes)
                f.call("@pack_panels", to, y, f.field(e, Y_ROW), f.field(e, Y_COLUMN), k, width)
            with f.loop(0, tiles) as tile:
                top = f.select(packs_x, height * tile // tiles, f.minimum(tile * shape.rows, height - shape.rows))
                rows = f.select(packs_x, height * (tile + 1) // tiles - top, shape.rows)
                is_open = f.variable(f.integer(0))
                with f.loop(0, a["count"]) as product:
                    e = entry(product)
                    x = f.at(f.field(e, X, "ptr"), (first + top) * f.field(e, X_ROW))
                    y = f.at(f.field(e, Y, "ptr"), left * f.field(e, Y_COLUMN))
                    sums = _product(
                        f, shape, f.select(packs_x, f.at(packed_x, product * x_bytes, top * k * size), x),
                        f.select(packs_x, f.integer(size), f.field(e, X_ROW)),
                        f.select(packs_x, rows * size, f.field(e, X_COLUMN)),
                        f.select(packs_y, f.at(packed_y, product * y_bytes), y),
                        f.select(packs_y, f.integer(line), f.field(e, Y_ROW)), k,
                    )  # fmt: skip
                    additions = f.field(e, ADDITIONS)
                    with f.loop(0, additions) as done:
                        before = f.at(open_tiles, (is_open.get() - done - 1) * tile_bytes)
                        for number_of_sum, total in enumerate(sums):
                            left_sum = f.load(shape.vector, f.at(before, number_of_sum * shape.vector_bytes), size)
                            total.set(left_sum + total.get())
                    place = is_open.get() - additions
                    for number_of_sum, total in enumerate(sums):
                        to = f.at(open_tiles, place * tile_bytes, number_of_sum * shape.vector_bytes)
                        f.store(total.get(), to, size)
                    is_open.set(place + 1)
                out = f.at(a["out"], (first + top) * a["out_row"], left * size)
                _store_tile(f, shape, out, a["out_row"], open_tiles, rows, width)
    f.line(f"call void @free({memory})")
    return f


def _product(
    f: Function, shape: Shape, x: Value, x_row: Value, x_step: Value, y: Value, y_step: Value, k: Value
) -> list[Variable]:
    """The vectors of a tile of a product, row by row, as `gemm_ir` computes them in one block of k."""
    sums = [f.variable(f.constant(shape.vector, 0)) for _ in range(2 * shape.rows)]
    panel = f.variable(y)
    pointers = [f.variable(f.at(x, x_row * row)) for row in range(0, shape.rows, 3)]
    twice = f.opaque(x_row * 2)
    with f.loop(0, k):
        line = panel.get()
        factors = [f.load(shape.vector, f.at(line, first), shape.itemsize) for first in (0, shape.vector_bytes)]
        for row in range(shape.rows):
            place = f.at(pointers[row // 3].get(), (0, x_row, twice)[row % 3])
            element = f.splat(shape.vector, f.load(shape.scalar, place, shape.itemsize))
            for total, factor in zip(sums[2 * row :], factors, strict=False):
                total.set(f.multiply_add(element, factor, total.get()))
        for pointer in pointers:
            pointer.set(f.opaque(f.at(pointer.get(), x_step)))
        panel.set(f.opaque(f.at(line, y_step)))
    return sums


def _store_tile(f: Function, shape: Shape, out: Value, out_row: Value, tile: Value, rows: Value, width: Value) -> None:
    size, line = shape.itemsize, shape.columns * shape.itemsize
    for first in (0, shape.lanes):
        with f.when(width - first >= shape.lanes), f.loop(0, rows) as row:
            value = f.load(shape.vector, f.at(tile, row * line, first * size), size)
            f.store(value, f.at(out, row * out_row, first * size), size)
        with f.when((width > first) & (width - first < shape.lanes)), f.loop(0, rows) as row:
            mask = f.first_lanes(shape.lanes, width - first)
            value = f.load(shape.vector, f.at(tile, row * line, first * size), size)
            f.store_some(value, f.at(out, row * out_row, first * size), mask, size)
