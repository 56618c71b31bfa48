"""The product of two matrices in LLVM IR: micro-kernels, packing and blocking.

A micro-kernel keeps a tile of the result in vector registers and adds up products over a block of k: each step loads a
few vectors of y, and multiplies them by numbers of x that are spread over all lanes. What is read many times is packed
first into the order in which tiles read it. Blocks are sized for the caches: a panel of y for the first level, a block
of x for the second.

Every element of the result is computed alike, wherever it stands and whatever the tile: products are added in the order
of k by fused multiply-adds, in blocks of `BLOCK`, and blocks are added in order. So its bits depend on its row of x,
its column of y, and nothing else: not on the number of rows or columns, on strides, on threads, or on how wide vectors
are. (A processor without fused multiply-adds rounds twice.)

References: Goto & van de Geijn, "Anatomy of high-performance matrix multiplication", 2008; Van Zee & van de Geijn,
"BLIS: a framework for rapidly instantiating BLAS functionality", 2015.
"""

from __future__ import annotations

from disttensor.kernels.gemm_packing_ir import PANELS_AT_ONCE, Shape, pack_panels, pack_rows
from disttensor.kernels.gemm_tree_ir import sum_products
from disttensor.kernels.ir import Function, Value

BLOCK = 256
"""Products are added up in blocks of so many; part of what the results are, so the same for all machines."""

_ROWS_IN_CACHE = 256
_COLUMNS_IN_CACHE = 2048
_STEPS_AT_ONCE = 8
"""Steps of k that a large tile takes without looking whether it has come to the end."""


_TILE = [
    ("ptr", "x"), ("i64", "x_row"), ("i64", "x_step"), ("ptr", "y"), ("i64", "y_step"), ("ptr", "out"),
    ("i64", "out_row"), ("i64", "depth"), ("i64", "add"),
]  # fmt: skip


def _tile(shape: Shape, rows: int, vectors: int) -> Function:
    """``out (+)= Σ_k x[·, k]·y[k, ·]`` for a tile of so many rows and vectors."""
    f = Function(f"tile_{rows}x{vectors}", _TILE, "internal noinline")
    size, vector, width = shape.itemsize, shape.vector, shape.vector_bytes
    sums = [[f.variable(f.constant(vector, 0)) for _ in range(vectors)] for _ in range(rows)]
    y = f.variable(f["y"])
    places = [f.at(f["out"], f["out_row"] * row) for row in range(rows)]
    for place in places:
        f.prefetch(place)
    # A pointer for every third row; the two rows after it are reached by the addressing modes of a load, so that no
    # addition waits for another.
    pointers = [f.variable(f.at(f["x"], f["x_row"] * row)) for row in range(0, rows, 3)]
    twice = f.opaque(f["x_row"] * 2)

    def multiply_once() -> None:
        line = y.get()
        factors = [f.load(vector, f.at(line, width * number), size) for number in range(vectors)]
        for row in range(rows):
            place = f.at(pointers[row // 3].get(), (0, f["x_row"], twice)[row % 3])
            element = f.splat(vector, f.load(shape.scalar, place, size))
            for total, factor in zip(sums[row], factors, strict=True):
                total.set(f.multiply_add(element, factor, total.get()))
        for pointer in pointers:
            pointer.set(f.opaque(f.at(pointer.get(), f["x_step"])))
        y.set(f.opaque(f.at(line, f["y_step"])))

    # The tiles of which large products consist are worth more code.
    at_once = _STEPS_AT_ONCE if vectors == 2 and shape.rows - 1 <= rows <= shape.rows else 1
    steps = f["depth"] - f["depth"]._binary("rem", at_once) if at_once > 1 else f["depth"]
    with f.loop(0, steps, at_once):
        for _ in range(at_once):
            multiply_once()
    if at_once > 1:
        with f.loop(steps, f["depth"]):
            multiply_once()
    targets = [[f.at(place, width * number) for number in range(vectors)] for place in places]
    with f.when(f["add"] > 0):
        for total, target in zip(sum(sums, []), sum(targets, []), strict=True):
            total.set(f.load(vector, target, size) + total.get())
    for total, target in zip(sum(sums, []), sum(targets, []), strict=True):
        f.store(total.get(), target, size)
    return f


_BLOCK = [
    ("ptr", "out"), ("i64", "out_row"), ("ptr", "x"), ("i64", "x_row"), ("i64", "x_step"), ("ptr", "y"),
    ("i64", "y_step"), ("i64", "y_panel"), ("ptr", "edge"), ("i64", "m"), ("i64", "n"), ("i64", "depth"),
    ("i64", "add"), ("i64", "packed"),
]  # fmt: skip


def _multiply_block(shape: Shape) -> Function:
    """The tiles of a product over one block of k.

    `y_panel` is from one panel of y to the next, and `edge` the last one if it is narrower, packed; `packed` says that
    x is in strips.
    """
    f = Function("multiply_block", _BLOCK, "internal noinline")
    size, n, depth, line = shape.itemsize, f["n"], f["depth"], shape.columns * shape.itemsize
    in_strips = f["packed"] > 0
    tallest = f.select(
        in_strips, f.integer(shape.rows), f.select(n <= shape.lanes, f.integer(2 * shape.rows), shape.rows)
    )
    tiles = (f["m"] + tallest - 1) // tallest
    corner = Value(f, "ptr", f.reserve(shape.vector, 4 * shape.rows))
    with f.loop(0, n, shape.columns) as left:
        width = f.minimum(n - left, shape.columns)
        is_edge = width < shape.columns
        y = f.select(is_edge, f["edge"], f.at(f["y"], (left // shape.columns) * f["y_panel"]))
        y_step = f.select(is_edge, f.integer(line), f["y_step"])
        vectors = (width + (shape.lanes - 1)) // shape.lanes
        masks = [f.first_lanes(shape.lanes, width - first) for first in (0, shape.lanes)]
        with f.loop(0, tiles) as tile:
            top = f["m"] * tile // tiles
            rows = f["m"] * (tile + 1) // tiles - top
            # A table: tiles of one vector by their rows, then tiles of two.
            number = (vectors - 1) * (2 * shape.rows) + rows - 1
            target = f.load("ptr", f.at(Value(f, "ptr", "@tiles"), number * 8), 8)
            strip = f.at(f["x"], f.select(in_strips, top * depth * size, top * f["x_row"]))
            x_row = f.select(in_strips, f.integer(size), f["x_row"])
            x_step = f.select(in_strips, rows * size, f["x_step"])
            out = f.at(f["out"], top * f["out_row"], left * size)
            place, row_bytes = f.select(is_edge, corner, out), f.select(is_edge, f.integer(line), f["out_row"])
            add = f.select(is_edge, f.integer(0), f["add"])
            f.call(target.name, strip, x_row, x_step, y, y_step, place, row_bytes, depth, add)
            with f.when(is_edge), f.loop(0, rows) as row:
                for half, mask in enumerate(masks):
                    source = f.at(corner, row * line, half * shape.vector_bytes)
                    to = f.at(out, row * f["out_row"], half * shape.vector_bytes)
                    value = f.variable(f.load(shape.vector, source, size))
                    with f.when(f["add"] > 0):
                        value.set(f.load_some(shape.vector, to, mask, size) + value.get())
                    f.store_some(value.get(), to, mask, size)
    return f


PRODUCT = [
    ("ptr", "out"), ("i64", "out_row"), ("ptr", "x"), ("i64", "x_row"), ("i64", "x_column"), ("ptr", "y"),
    ("i64", "y_row"), ("i64", "y_column"), ("i64", "m"), ("i64", "n"), ("i64", "k"), ("i64", "add"),
]  # fmt: skip
"""Parameters of `multiply`; strides in bytes, those of out's columns are the size of an element."""


def _multiply(shape: Shape, packed: bool = False, pack_y_from: int = 5, pack_x_from: int = 9) -> Function:
    """``out = x @ y``, or with `add` ``out += x @ y``; `packed` if y is what `pack` made of it."""
    f = Function("multiply_packed" if packed else "multiply", PRODUCT)
    size, m, n, k = shape.itemsize, f["m"], f["n"], f["k"]
    line = shape.columns * size
    tiles = (m + (shape.rows - 1)) // shape.rows
    panels = (n + (shape.columns - 1)) // shape.columns
    packs_y = f.select(f["y_column"].equals(size), tiles >= pack_y_from, f.constant("i1", 1))
    # A few panels read x as it lies no slower; but the far columns of a transpose, if many, would drive one another out
    # of the cache.
    reads_far = (f["x_row"].equals(size)) & (k > 64)
    packs_x = (panels >= f.select(reads_far, f.integer(4), pack_x_from)) & (m > 1)
    blocks = (m + (_ROWS_IN_CACHE - 1)) // _ROWS_IN_CACHE
    # One block of x sees each part of y once; for several, all of it is kept.
    at_once = PANELS_AT_ONCE * shape.columns
    most = f.select(blocks <= 1, f.integer(at_once), _COLUMNS_IN_CACHE)
    width, height = f.minimum(n, most), f.minimum(m, _ROWS_IN_CACHE)
    block = f.minimum(k, BLOCK)
    for_y = f.integer(0)
    if not packed:
        for_y = f.select(packs_y, (width + (shape.columns - 1)) // shape.columns * line * block, 0)
    for_x = f.select(packs_x, height * size * block + 2 * shape.vector_bytes, 0)
    needs = for_y + for_x > 0
    scratch = f.variable(f.constant("ptr", 0))
    with f.when(needs):
        scratch.set(f.emit("ptr", f"call ptr @malloc(i64 {(for_y + for_x + 64).name})"))
    memory = scratch.get()
    of_y = f.at(memory, f.integer(0) - f.emit("i64", f"ptrtoint {memory} to i64") & f.integer(63))
    of_x = f.at(of_y, for_y)
    of_edge = Value(f, "ptr", f.reserve(shape.scalar, BLOCK * shape.columns))
    with f.loop(0, n, _COLUMNS_IN_CACHE) as left:
        columns = f.minimum(n - left, _COLUMNS_IN_CACHE)
        whole = columns - columns._binary("rem", shape.columns)
        with f.loop(0, k, BLOCK) as start:
            depth = f.minimum(k - start, BLOCK)
            panel = depth * line
            if packed:
                place = f.at(f["y"], start * panels * line, left // shape.columns * panel)
                edge = f.at(place, whole // shape.columns * panel)
                y_step, y_panel = f.integer(line), panel
            else:
                place = f.at(f["y"], start * f["y_row"], left * f["y_column"])
                edge = of_edge
                with f.when(columns > whole):
                    narrow = f.at(place, whole * f["y_column"])
                    f.call("@pack_panels", edge, narrow, f["y_row"], f["y_column"], depth, columns - whole)
                y_step = f.select(packs_y, f.integer(line), f["y_row"])
                y_panel = f.select(packs_y, panel, f.integer(line))
            add = f.select(start > 0, f.integer(1), f["add"])
            with f.loop(0, blocks) as number:
                top = m * number // blocks
                rows = m * (number + 1) // blocks - top
                x = f.at(f["x"], top * f["x_row"], start * f["x_column"])
                with f.when(packs_x):
                    strips = (rows + (shape.rows - 1)) // shape.rows
                    f.call("@pack_rows", of_x, x, f["x_row"], f["x_column"], rows, depth, strips)
                with f.loop(0, columns, at_once) as first:
                    count = f.minimum(columns - first, at_once)
                    if packed:
                        y = f.at(place, first // shape.columns * panel)
                    else:
                        kept = f.at(of_y, f.select(blocks <= 1, f.integer(0), first // shape.columns * panel))
                        there = f.at(place, first * f["y_column"])
                        with f.when(packs_y & number.equals(0)):
                            many = f.minimum(whole - first, at_once)
                            f.call("@pack_panels", kept, there, f["y_row"], f["y_column"], depth, many)
                        y = f.select(packs_y, kept, there)
                    out = f.at(f["out"], top * f["out_row"], (left + first) * size)
                    f.call(
                        "@multiply_block", out, f["out_row"], f.select(packs_x, of_x, x), f["x_row"], f["x_column"],
                        y, y_step, y_panel, edge, rows, count, depth, add, f.select(packs_x, f.integer(1), 0),
                    )  # fmt: skip
    with f.when(needs):
        f.line(f"call void @free({memory})")
    with f.when((k <= 0) & (f["add"] <= 0)), f.loop(0, m) as row, f.loop(0, n) as column:
        f.store(f.constant(shape.scalar, 0), f.at(f["out"], row * f["out_row"], column * size), size)
    return f


PACK = [("ptr", "to"), ("ptr", "y"), ("i64", "y_row"), ("i64", "y_column"), ("i64", "n"), ("i64", "k")]
"""Parameters of `pack`."""


def _pack(shape: Shape) -> Function:
    """All of y in panels, for many products with it by `multiply_packed`; n is rounded up to whole panels."""
    f = Function("pack", PACK)
    panels = (f["n"] + (shape.columns - 1)) // shape.columns
    with f.loop(0, f["k"], BLOCK) as start:
        to = f.at(f["to"], start * panels * (shape.columns * shape.itemsize))
        depth = f.minimum(f["k"] - start, BLOCK)
        f.call("@pack_panels", to, f.at(f["y"], start * f["y_row"]), f["y_row"], f["y_column"], depth, f["n"])
    return f


def _pack_shared(shape: Shape) -> Function:
    """The native kernel that packs panels of y, for all threads that use them."""
    f = Function("pack_shared", [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
    to, y = (f.field(f["arguments"], i, "ptr") for i in range(2))
    y_row, y_column, n, k = (f.field(f["arguments"], i) for i in range(2, 6))
    line = shape.columns * shape.itemsize
    panels = (n + (shape.columns - 1)) // shape.columns
    left = f["start"] * shape.columns
    count = f.minimum(f["stop"] * shape.columns, n) - left
    with f.loop(0, k, BLOCK) as first:
        depth = f.minimum(k - first, BLOCK)
        place = f.at(to, (first * panels + f["start"] * depth) * line)
        f.call("@pack_panels", place, f.at(y, first * y_row, left * y_column), y_row, y_column, depth, count)
    return f


_PRODUCTS = ["out", "x", "y", "out_places", "x_places", "y_places", "out_row", "x_row", "x_column", "y_row"] + [
    "y_column", "m", "n", "k", "add", "by_columns", "unit", "units", "packed"
]  # fmt: skip


def _products(shape: Shape) -> Function:
    """The native kernel for a stack: `units` pieces of each product, of `unit` rows or columns.

    The fields of its arguments are listed above; `…_places` are the offsets of the matrices in bytes. If y is `packed`,
    there is one product, in pieces of rows.
    """
    f = Function("products", [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
    pointers = _PRODUCTS[:6]
    a = {p: f.field(f["arguments"], i, "ptr" if p in pointers else "i64") for i, p in enumerate(_PRODUCTS)}
    by_columns = a["by_columns"] > 0
    size, units, zero = shape.itemsize, a["units"], f.integer(0)
    first, last = f["start"] // units, (f["stop"] + units - 1) // units
    with f.loop(first, last) as number:
        done = number * units
        begin = f.select(f["start"] > done, f["start"] - done, 0) * a["unit"]
        end = f.minimum(f["stop"] - done, units) * a["unit"]
        top, bottom = f.select(by_columns, zero, begin), f.select(by_columns, a["m"], f.minimum(end, a["m"]))
        left, right = f.select(by_columns, begin, zero), f.select(by_columns, f.minimum(end, a["n"]), a["n"])
        out, x, y = (f.at(a[p], f.load("i64", f.at(a[f"{p}_places"], number * 8), 8)) for p in ("out", "x", "y"))
        arguments = [
            f.at(out, top * a["out_row"], left * size), a["out_row"], f.at(x, top * a["x_row"]), a["x_row"],
            a["x_column"], f.at(y, left * a["y_column"]), a["y_row"], a["y_column"], bottom - top, right - left, a["k"],
            a["add"],
        ]  # fmt: skip
        packed = a["packed"] > 0
        with f.when(packed):
            f.call("@multiply_packed", *arguments)
        with f.unless(packed):
            f.call("@multiply", *arguments)
    return f


def functions(shape: Shape) -> tuple[list[Function], str]:
    """All functions of products, and the lines that they need in front of them."""
    heights = [(1, rows) for rows in range(1, 2 * shape.rows + 1)] + [(2, rows) for rows in range(1, shape.rows + 1)]
    tiles = [_tile(shape, rows, vectors) for vectors, rows in heights]
    names = ", ".join(f"ptr @tile_{rows}x{vectors}" for vectors, rows in heights)
    table = f"@tiles = internal constant [{len(tiles)} x ptr] [{names}]"
    head = "\n".join([table, "declare noalias ptr @malloc(i64)", "declare void @free(ptr)"])
    return [
        *tiles,
        pack_panels(shape),
        pack_rows(shape),
        _multiply_block(shape),
        _multiply(shape),
        _multiply(shape, packed=True),
        _pack(shape),
        _pack_shared(shape),
        _products(shape),
        sum_products(shape),
    ], head
