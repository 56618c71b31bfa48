"""The machine code of convolutions: products of patches, where they lie, with a matrix.

Forward pass, input gradient and weight gradient are one product, ``C[i] = Σ_t Σ_k A[places[i] + taps[t] + k·step] ·
B[t, k]``, with the sum in this order, each element being one chain of multiply-adds:

============== ==================== ========================= ===================
               i                    (t, k)                    B
============== ==================== ========================= ===================
forward        places of the output elements of the window    kernel
input gradient places of the input  those that meet the place kernel, transposed
weight gradient elements of the window places of the output   output gradient
============== ==================== ========================= ===================

B is packed in panels that are one or two vectors wide, so it is read in order. A tile of C stays in registers. Where
there is padding, the rows that a unit of work sees are copied between zeros first, which is a twentieth of the work or
less; nothing else is copied. What a unit is, and all distances, come in tables made by `convolution_plan`.

References: Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD architectures", 2018;
Dukhan, "The indirect convolution algorithm", 2019.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from disttensor.kernels import ir, machine
from disttensor.kernels.ir import Function, Value

_BLOCK_BYTES = 24 << 10
"""Of a panel, what is to stay in the first-level cache while the rows of C are gone through."""

POSITION = ("x", "y", "pixels", "rows", "columns", "places", "taps", "lines", "before", "inside", "behind")
"""The fields of a position, see `convolution_plan`; all int64."""


class Tiles(NamedTuple):
    """The sizes of tiles for this processor.

    Attributes
    ----------
    kind : str
        "float" or "double".
    itemsize : int
    lanes : int
        Numbers in a vector.
    rows : tuple of int
        The most rows of tiles that are one and two vectors wide.
    """

    kind: str
    itemsize: int
    lanes: int
    rows: tuple[int, int]

    @classmethod
    def of(cls, kind: str) -> Tiles:
        """The tiles that fill the registers."""
        itemsize = {"float": 4, "double": 8}[kind]
        registers = 32 if machine.vector_bytes() == 64 or machine.has("neon") else 16
        # One register is left for an element of A, and as many as the tile is wide for B.
        return cls(kind, itemsize, machine.vector_bytes() // itemsize, (min(14, registers - 4), (registers - 4) // 2))

    @property
    def vector(self) -> str:
        """LLVM's type of a vector."""
        return f"<{self.lanes} x {self.kind}>"


@functools.cache
def functions(kind: str) -> Mapping[str, int]:
    """The addresses of `pack`, `multiply`, `correlate` and `add_up`, for "float" or "double"."""
    tiles = Tiles.of(kind)
    return machine.load(ir.written("convolution", functools.partial(_text, tiles), tiles))


def _text(tiles: Tiles) -> str:
    code: list[Function] = []
    tables: list[str] = []
    for vectors in (1, 2):
        count = tiles.rows[vectors - 1]
        code += [_tile(tiles, rows, vectors) for rows in range(1, count + 1)]
        names = ", ".join(f"ptr @tile{vectors}_{rows}" for rows in range(1, count + 1))
        steps = ", ".join(f"i64 {row * vectors * tiles.lanes * tiles.itemsize}" for row in range(count))
        tables.append(f"@tiles{vectors} = internal constant [{count} x ptr] [{names}]")
        tables.append(f"@steps{vectors} = internal constant [{count} x i64] [{steps}]")
        code.append(_panel(tiles, vectors))
    code += [_copy_lines(), _pack(tiles), _multiply(tiles), _pack_rows(tiles), _correlate(tiles), _add_up(tiles)]
    outside = ("declare ptr @aligned_alloc(i64, i64)", "declare void @free(ptr)")
    return ir.module(code, *outside, *tables)


def _symbol(f: Function, name: str) -> Value:
    return Value(f, "ptr", f"@{name}")


def _tile(tiles: Tiles, rows: int, vectors: int) -> Function:
    """One tile of C: `rows` by `vectors`; `more` says whether to add to what is there."""
    parameters = [
        ("ptr", "a"),
        ("ptr", "places"),
        ("ptr", "taps"),
        ("i64", "count"),
        ("i64", "length"),
        ("i64", "step"),
    ]
    parameters += [("ptr", "b"), ("ptr", "c"), ("ptr", "targets"), ("i1", "more")]
    f = Function(f"tile{vectors}_{rows}", parameters, "internal noinline")
    size = tiles.lanes * tiles.itemsize
    zero = f.constant(tiles.vector, 0)
    sums = [[f.variable(zero) for _ in range(vectors)] for _ in range(rows)]

    def each_target() -> list[tuple[ir.Variable, Value]]:
        lines = [f.at(f["c"], f.field(f["targets"], row)) for row in range(rows)]
        return [(sums[i][j], f.at(line, j * size)) for i, line in enumerate(lines) for j in range(vectors)]

    with f.when(f["more"]):
        for total, target in each_target():
            total.set(f.load(tiles.vector, target, tiles.itemsize))
    starts = [f.at(f["a"], f.field(f["places"], row)) for row in range(rows)]
    line = f.variable(f["b"])
    with f.loop(0, f["count"]) as t:
        tap = f.load("i64", f.at(f["taps"], t * 8), 8)
        heads = [f.at(start, tap) for start in starts]
        offset = f.variable(f.integer(0))
        with f.loop(0, f["length"]):
            here, b = offset.get(), line.get()
            factors = [f.load(tiles.vector, f.at(b, j * size), tiles.itemsize) for j in range(vectors)]
            for head, row in zip(heads, sums, strict=True):
                element = f.splat(tiles.vector, f.load(tiles.kind, f.at(head, here), tiles.itemsize))
                for total, factor in zip(row, factors, strict=True):
                    total.set(f.multiply_add(element, factor, total.get()))
            offset.set(here + f["step"])
            line.set(f.at(b, vectors * size))
    for total, target in each_target():
        f.store(total.get(), target, tiles.itemsize)
    return f


def _panel(tiles: Tiles, vectors: int) -> Function:
    """All rows of C in one panel, of which `width` bytes exist."""
    parameters = [
        ("ptr", "a"),
        ("ptr", "places"),
        ("i64", "rows"),
        ("ptr", "taps"),
        ("i64", "count"),
        ("i64", "length"),
    ]
    parameters += [("i64", "step"), ("ptr", "b"), ("ptr", "c"), ("ptr", "targets"), ("i64", "width"), ("i1", "more")]
    f = Function(f"panel{vectors}", parameters, "internal noinline")
    most, full = tiles.rows[vectors - 1], vectors * tiles.lanes * tiles.itemsize
    number = (f["rows"] + (most - 1)) // most
    with f.when(f["rows"] > 0):
        least, longer = f["rows"] // number, f.emit("i64", f"srem {f['rows']}, {number.name}")

        def each_tile(first: Value | int, count: Value, c: Value, targets: Value | None, more: Value) -> None:
            taps = f.at(f["taps"], first * 8)
            b = f.at(f["b"], first * f["length"] * full)
            top = f.variable(f.integer(0))
            with f.loop(0, number) as i:
                here = top.get()
                height = least + f.emit("i64", f"zext {i < longer} to i64")
                tile = f.load("ptr", f.at(_symbol(f, f"tiles{vectors}"), (height - 1) * 8), 8)
                where = f.at(f["targets"], here * 8)
                f.call(
                    tile.name, f["a"], f.at(f["places"], here * 8), taps, count, f["length"], f["step"], b, c,
                    where if targets is None else targets, more,
                )  # fmt: skip
                if targets is not None:
                    with f.loop(0, height) as row:
                        target = f.at(f["c"], f.load("i64", f.at(where, row * 8), 8))
                        _copy(f, target, f.at(c, row * full), f["width"])
                top.set(here + height)

        whole = f["width"].equals(full)
        with f.when(whole):
            fitting = f.integer(_BLOCK_BYTES) // (f.select(f["length"] > 1, f["length"], 1) * full)
            block = f.select(fitting > 1, fitting, 1)
            # At least once: without taps, the rows are zero.
            last = f.select(f["count"] > 1, f["count"], 1)
            with f.loop(0, last, block) as first:
                later = f.emit("i1", f"or {first > 0}, {f['more'].name}")
                each_tile(first, f.minimum(f["count"] - first, block), f["c"], None, later)
        with f.unless(whole):
            edge = Value(f, "ptr", f.reserve(tiles.vector, most * vectors))
            each_tile(f.integer(0), f["count"], edge, _symbol(f, f"steps{vectors}"), f.constant("i1", 0))
    return f


def _copy(f: Function, target: Value, source: Value, size: Value) -> None:
    f.call("@llvm.memcpy.p0.p0.i64", target, source, size, f.constant("i1", 0))
    f.declarations.add("declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")


def _clear(f: Function, target: Value, size: Value) -> None:
    f.call("@llvm.memset.p0.i64", target, f.constant("i8", 0), size, f.constant("i1", 0))
    f.declarations.add("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")


def _field(f: Function, pointer: Value, name: str) -> Value:
    return f.field(pointer, POSITION.index(name))


def _copy_lines() -> Function:
    """The rows that a position sees of one image, between zeros."""
    parameters = [("ptr", "to"), ("ptr", "x"), ("ptr", "position"), ("ptr", "lines"), ("i64", "count"), ("i64", "size")]
    f = Function("copy_lines", parameters, "internal noinline")
    before, inside, behind = (_field(f, f["position"], name) for name in ("before", "inside", "behind"))
    lines = f.at(f["lines"], _field(f, f["position"], "lines"))
    with f.loop(0, f["count"]) as i:
        target, source = f.at(f["to"], i * f["size"]), f.load("i64", f.at(lines, i * 8), 8)
        outside = source < 0
        with f.when(outside):
            _clear(f, target, f["size"])
        with f.unless(outside):
            _clear(f, target, before)
            target = f.at(target, before)
            _copy(f, target, f.at(f["x"], source), inside)
            _clear(f, f.at(target, inside), behind)
    return f


def _pack(tiles: Tiles) -> Function:
    """Kernels as panels: (group, panel, tap, channel, lane), with zeros behind the last filter."""
    f = Function("pack", [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
    names = ("out", "kernel", "taps", "count", "channels", "filters", "group_step", "channel_step", "filter_step")
    a = {n: f.field(f["arguments"], i, "ptr" if i < 3 else "i64") for i, n in enumerate(names)}
    target = f.variable(a["out"])
    with f.loop(f["start"], f["stop"]) as group:
        source = f.at(a["kernel"], group * a["group_step"])
        left = f.variable(f.integer(0))
        with f.loop(0, (a["filters"] + (2 * tiles.lanes - 1)) // (2 * tiles.lanes)):
            first = left.get()
            rest = a["filters"] - first
            width = f.select(rest > tiles.lanes, f.integer(2 * tiles.lanes), f.integer(tiles.lanes))
            present = f.minimum(rest, width)
            with f.loop(0, a["count"]) as t:
                tap = f.at(source, f.load("i64", f.at(a["taps"], t * 8), 8), first * a["filter_step"])
                with f.loop(0, a["channels"]) as channel:
                    row, to = f.at(tap, channel * a["channel_step"]), target.get()
                    with f.loop(0, present) as lane:
                        number = f.load(tiles.kind, f.at(row, lane * a["filter_step"]), tiles.itemsize)
                        f.store(number, f.at(to, lane * tiles.itemsize), tiles.itemsize)
                    _clear(f, f.at(to, present * tiles.itemsize), (width - present) * tiles.itemsize)
                    target.set(f.at(to, width * tiles.itemsize))
            left.set(first + width)
    return f


_SHARED = (
    "x", "b", "c", "positions", "places", "targets", "taps", "lines",  # addresses
    "position_count", "images", "group_images", "x_image", "y_image", "line_count", "line_size", "padded",
    "groups", "x_group", "length", "step", "tap_count", "filters",
)  # fmt: skip
MULTIPLY = (*_SHARED, "y_group")
"""The arguments of `multiply`: C is the output, and `taps` one list."""
CORRELATE = (
    *_SHARED, "targets_narrow", "window", "blocks", "chunks", "units", "rows_of_g", "g_step", "in_place", "panel_bytes",
)  # fmt: skip
"""The arguments of `correlate`: B is the output gradient, C the partial sums."""


def _arguments(f: Function, names: tuple[str, ...]) -> dict[str, Value]:
    pointers = {*_SHARED[:8], "targets_narrow", "rows_of_g"}
    return {n: f.field(f["arguments"], i, "ptr" if n in pointers else "i64") for i, n in enumerate(names)}


def _unit(f: Function, a: dict[str, Value], unit: Value, scratch: Value) -> tuple[Value, Value, Value, Value]:
    """Its position, images, first image, and where its part of the input lies, copied if need be."""
    series = unit // a["position_count"]
    index = unit - series * a["position_count"]
    position = f.at(a["positions"], index * (8 * len(POSITION)))
    first = series * a["group_images"]
    images = f.minimum(a["images"] - first, a["group_images"])
    x = f.at(a["x"], first * a["x_image"])
    padded = a["padded"] > 0
    with f.when(padded), f.loop(0, images) as image:
        f.call(
            "@copy_lines", f.at(scratch, image * a["line_count"] * a["line_size"]), f.at(x, image * a["x_image"]),
            position, a["lines"], a["line_count"], a["line_size"],
        )  # fmt: skip
    return position, images, first, f.select(padded, scratch, f.at(x, _field(f, position, "x")))


def _allocate(f: Function, size: Value) -> Value:
    return f.emit("ptr", f"call ptr @aligned_alloc(i64 64, {size})")


def _each_panel(f: Function, tiles: Tiles, filters: Value, write: Callable[..., None]) -> None:
    """Call ``write(vectors, first filter, filters present)`` for the wide panels and for a narrow one."""
    lanes = tiles.lanes
    whole = (filters + (lanes - 1)) // (2 * lanes)
    with f.loop(0, whole) as number:
        first = number * (2 * lanes)
        write(2, first, f.minimum(filters - first, f.integer(2 * lanes)))
    first = whole * (2 * lanes)
    with f.when(first < filters):
        write(1, first, filters - first)


def _multiply(tiles: Tiles) -> Function:
    """The output of units [start, stop)."""
    f = Function("multiply", [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
    a = _arguments(f, MULTIPLY)
    scratch = _allocate(f, (a["group_images"] * a["line_count"] * a["line_size"] + 127) // 64 * 64)
    padded_filters = (a["filters"] + (tiles.lanes - 1)) // tiles.lanes * tiles.lanes
    depth = a["tap_count"] * a["length"] * tiles.itemsize
    with f.loop(f["start"], f["stop"]) as unit:
        position, images, first, x = _unit(f, a, unit, scratch)
        y = f.at(a["c"], first * a["y_image"], _field(f, position, "y"))
        places, pixels = _field(f, position, "places"), images * _field(f, position, "pixels")
        with f.loop(0, a["groups"]) as group:
            b, here = f.at(a["b"], group * padded_filters * depth), f.at(x, group * a["x_group"])

            def write(vectors: int, left: Value, width: Value) -> None:
                f.call(
                    f"@panel{vectors}", here, f.at(a["places"], places), pixels, a["taps"], a["tap_count"],  # noqa: B023
                    a["length"], a["step"], f.at(b, left * depth),  # noqa: B023
                    f.at(y, group * a["y_group"], left * tiles.itemsize), f.at(a["targets"], places),  # noqa: B023
                    width * tiles.itemsize, f.constant("i1", 0),
                )  # fmt: skip

            _each_panel(f, tiles, a["filters"], write)
    f.call("@free", scratch)
    return f


def _pack_rows(tiles: Tiles) -> Function:
    """A panel of the output gradient: `columns` places in each of `rows` rows, with zeros behind the last filter."""
    parameters = [("ptr", "to"), ("ptr", "g"), ("ptr", "lines"), ("i64", "rows"), ("i64", "columns"), ("i64", "step")]
    f = Function("pack_rows", [*parameters, ("i64", "width"), ("i64", "full")], "internal noinline")
    target = f.variable(f["to"])
    size = tiles.lanes * tiles.itemsize

    def each_place(write: Callable[..., None]) -> None:
        with f.loop(0, f["rows"]) as row:
            line = f.at(f["g"], f.load("i64", f.at(f["lines"], row * 8), 8))
            with f.loop(0, f["columns"]) as column:
                to = target.get()
                write(to, f.at(line, column * f["step"]))
                target.set(f.at(to, f["full"]))

    def whole(vectors: int) -> None:
        def write(to: Value, source: Value) -> None:
            for j in range(vectors):
                f.store(
                    f.load(tiles.vector, f.at(source, j * size), tiles.itemsize), f.at(to, j * size), tiles.itemsize
                )

        with f.when(f["width"].equals(vectors * size)):
            each_place(write)

    def partly(to: Value, source: Value) -> None:
        _copy(f, to, source, f["width"])
        _clear(f, f.at(to, f["width"]), f["full"] - f["width"])

    whole(1)
    whole(2)
    with f.when(f["width"] < f["full"]):
        each_place(partly)
    return f


def _correlate(tiles: Tiles) -> Function:
    """Partial sums [start, stop) of the weight gradient; each is of a run of units and of some rows of the result.

    They are laid out as (chunk, group, panel, element of the window, lane).
    """
    f = Function("correlate", [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
    a = _arguments(f, CORRELATE)
    scratch_size = (a["group_images"] * a["line_count"] * a["line_size"] + 127) // 64 * 64
    scratch = _allocate(f, scratch_size + a["panel_bytes"])
    panel = f.at(scratch, scratch_size)
    padded_filters = (a["filters"] + (tiles.lanes - 1)) // tiles.lanes * tiles.lanes
    depth = a["window"] * tiles.itemsize
    with f.loop(f["start"], f["stop"]) as part:
        chunk = part // a["blocks"]
        block = part - chunk * a["blocks"]
        top, bottom = block * a["window"] // a["blocks"], (block + 1) * a["window"] // a["blocks"]
        begin, end = chunk * a["units"] // a["chunks"], (chunk + 1) * a["units"] // a["chunks"]
        with f.loop(begin, end) as unit:
            position, images, first, x = _unit(f, a, unit, scratch)
            g = f.at(a["b"], first * a["y_image"], _field(f, position, "y"))
            rows, columns = images * _field(f, position, "rows"), _field(f, position, "columns")
            taps = f.at(a["taps"], _field(f, position, "taps"))
            lines = f.at(a["rows_of_g"], _field(f, position, "taps"))
            more = unit > begin
            with f.loop(0, a["groups"]) as group:
                here = f.at(x, group * a["x_group"])
                sums = f.at(a["c"], (chunk * a["groups"] + group) * padded_filters * depth)
                values = f.at(g, group * a["filters"] * tiles.itemsize)

                def write(vectors: int, left: Value, width: Value) -> None:
                    full = vectors * tiles.lanes * tiles.itemsize
                    source = f.at(values, left * tiles.itemsize)  # noqa: B023
                    in_place = a["in_place"] > 0
                    with f.unless(in_place):
                        f.call(
                            "@pack_rows", panel, source, lines, rows, columns, a["g_step"],  # noqa: B023
                            width * tiles.itemsize, full,
                        )  # fmt: skip
                    targets = f.at(a["targets" if vectors == 2 else "targets_narrow"], top * 8)  # noqa: B023
                    f.call(
                        f"@panel{vectors}", here, f.at(a["places"], top * 8), bottom - top, taps, rows, columns,  # noqa: B023
                        a["step"], f.select(in_place, source, panel), f.at(sums, left * depth), targets, full, more,  # noqa: B023
                    )  # fmt: skip

                _each_panel(f, tiles, a["filters"], write)
    f.call("@free", scratch)
    return f


ADD_UP = ("out", "partial", "chunks", "groups", "filters", "window", "out_step")
"""The arguments of `add_up`."""


def _add_up(tiles: Tiles) -> Function:
    """Rows [start, stop) of the weight gradient: the sum of its parts, in their order."""
    f = Function("add_up", [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
    a = {n: f.field(f["arguments"], i, "ptr" if i < 2 else "i64") for i, n in enumerate(ADD_UP)}
    size = tiles.lanes * tiles.itemsize
    padded_filters = (a["filters"] + (tiles.lanes - 1)) // tiles.lanes * tiles.lanes
    depth = a["window"] * tiles.itemsize
    chunk_size = a["groups"] * padded_filters * depth
    edge = Value(f, "ptr", f.reserve(tiles.vector, 2))
    with f.loop(f["start"], f["stop"]) as row, f.loop(0, a["groups"]) as group:
        target = f.at(a["out"], row * a["out_step"], group * a["filters"] * tiles.itemsize)
        source = f.at(a["partial"], group * padded_filters * depth)

        def write(vectors: int, left: Value, width: Value) -> None:
            start = f.at(source, left * depth, row * (vectors * size))  # noqa: B023
            sums = [f.variable(f.constant(tiles.vector, 0)) for _ in range(vectors)]
            with f.loop(0, a["chunks"]) as chunk:
                for j, total in enumerate(sums):
                    part = f.load(tiles.vector, f.at(start, chunk * chunk_size, j * size), tiles.itemsize)
                    total.set(total.get() + part)
            for j, total in enumerate(sums):
                f.store(total.get(), f.at(edge, j * size), tiles.itemsize)
            _copy(f, f.at(target, left * tiles.itemsize), edge, width * tiles.itemsize)  # noqa: B023

        _each_panel(f, tiles, a["filters"], write)
    return f
