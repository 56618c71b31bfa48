"""Rows picked and added up by index, in LLVM IR; see `disttensor.kernels.indexing`.

Indices are of type i32 or i64, negative ones count from the end. Only `check` looks whether they are in range.
"""

from __future__ import annotations

from collections.abc import Callable

from disttensor.kernels.ir import Function, Value

WORDS = (1, 2, 4, 8)
"""Rows of so many bytes are copied as one number."""


def _start(name: str) -> Function:
    return Function(name, [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])


def _row(f: Function, indices: Value, kind: str, number: Value, size: Value) -> Value:
    """The index of this number, from the front."""
    itemsize = int(kind[1:]) // 8
    index = f.load(kind, f.at(indices, number * itemsize), itemsize)
    wide = index if kind == "i64" else f.emit("i64", f"sext {index} to i64")
    return f.select(wide < 0, wide + size, wide)


def check(kind: str) -> Function:
    """Give up if an index is out of range; the arguments are the word that says so, the indices, and the size."""
    f = _start("check")
    indices, size = f.field(f["arguments"], 1, "ptr"), f.field(f["arguments"], 2)
    wrong = f.variable(f.constant("i1", 0))
    with f.loop(f["start"], f["stop"]) as number:
        row = _row(f, indices, kind, number, size)
        wrong.set(wrong.get() | (row < 0) | (row >= size))
    f.store(f.emit("i64", f"zext {wrong.get()} to i64"), f["arguments"], 8)
    return f


def gather(kind: str) -> Function:
    """Copy rows to the places [start, stop) of (outer, indices).

    Its arguments are the result, the table of (outer, size) rows, the indices, their number, the size, and the bytes of
    a row.
    """
    f = _start("gather")
    out, table, indices = (f.field(f["arguments"], i, "ptr") for i in range(3))
    count, size, width = (f.field(f["arguments"], i) for i in range(3, 6))
    is_word = width.equals(WORDS[0])
    for word in WORDS[1:]:
        is_word = is_word | width.equals(word)

    def each_row(copy: Callable[[Value, Value], None]) -> None:
        with f.loop(f["start"], f["stop"]) as place:
            outer = place // count
            row = outer * size + _row(f, indices, kind, place - outer * count, size)
            copy(f.at(out, place * width), f.at(table, row * width))

    for word in WORDS:
        bits = f"i{8 * word}"
        with f.when(width.equals(word)):
            each_row(lambda to, source, bits=bits: f.store(f.load(bits, source, 1), to, 1))  # type: ignore[misc]
    with f.unless(is_word):
        each_row(lambda to, source: f.copy(to, source, width))
    return f


def scatter_add(kind: str, scalar: str, vector_bytes: int) -> Function:
    """Add rows to those of the result that indices name, and only to its rows [start, stop), which are 0 before.

    Its arguments are the result, the indices, the rows, their number, how many numbers each has, and the rows of the
    result.
    """
    f = _start("scatter_add")
    out, indices, updates = (f.field(f["arguments"], i, "ptr") for i in range(3))
    count, width, rows = (f.field(f["arguments"], i) for i in range(3, 6))
    size = 4 if scalar == "float" else 8
    lanes = vector_bytes // size
    wide = width // lanes * lanes
    f.zero(f.at(out, f["start"] * width * size), (f["stop"] - f["start"]) * width * size)
    with f.loop(0, count) as number:
        row = _row(f, indices, kind, number, rows)
        with f.when((row >= f["start"]) & (row < f["stop"])):
            total, update = f.at(out, row * width * size), f.at(updates, number * width * size)
            for first, last, step in ((f.integer(0), wide, lanes), (wide, width, 1)):
                numbers = scalar if step == 1 else f"<{lanes} x {scalar}>"
                with f.loop(first, last, step) as column:
                    place, added = f.at(total, column * size), f.at(update, column * size)
                    f.store(f.load(numbers, place, size) + f.load(numbers, added, size), place, size)
    return f


def order(kind: str) -> Function:
    """Sort the numbers of indices by what they name, equal ones in their order, by counting.

    The arguments are `starts`, which gets where each row's numbers start and has two words more than there are rows,
    `order`, which gets the numbers, the indices, how many they are, and the rows.
    """
    f = _start("order")
    starts, numbers, indices = (f.field(f["arguments"], i, "ptr") for i in range(3))
    count, rows = (f.field(f["arguments"], i) for i in range(3, 5))

    def place(row: Value, further: int) -> Value:
        return f.at(starts, row * 4, 4 * further)

    def load(pointer: Value) -> Value:
        return f.load("i32", pointer, 4)

    f.zero(starts, (rows + 2) * 4)
    with f.loop(0, count) as number:
        at = place(_row(f, indices, kind, number, rows), 2)
        f.store(load(at) + 1, at, 4)
    before = f.variable(f.constant("i32", 0))
    with f.loop(0, rows) as row:
        before.set(before.get() + load(place(row, 1)))
        f.store(before.get(), place(row, 1), 4)
    f.store(f.emit("i32", f"trunc {count} to i32"), place(rows, 1), 4)
    with f.loop(0, count) as number:
        at = place(_row(f, indices, kind, number, rows), 1)
        to = f.emit("i64", f"sext {load(at)} to i64")
        f.store(f.emit("i32", f"trunc {number} to i32"), f.at(numbers, to * 4), 4)
        f.store(load(at) + 1, at, 4)
    return f


def sum_chosen(scalar: str, lanes: int) -> Function:
    """Add up the rows of x that a row has chosen, in their order: a part of generated loops.

    `used` says whether `to` may hold other numbers than 0.
    """
    pointers = [("ptr", name) for name in ("to", "used", "x", "starts", "order")]
    f = Function(f"sum_chosen_{scalar}", [*pointers, ("i64", "row"), ("i64", "columns")], "internal")
    to, used, columns, size = f["to"], f["used"], f["columns"], 4 if scalar == "float" else 8

    def number(array: str, place: Value) -> Value:
        return f.emit("i64", f"sext {f.load('i32', f.at(f[array], place * 4), 4)} to i64")

    first, last = number("starts", f["row"]), number("starts", f["row"] + 1)
    some = f.emit("i64", f"zext {first < last} to i64")
    with f.when((some > 0) | (f.load("i64", used, 8) > 0)):
        f.zero(to, columns * size)
        f.store(some, used, 8)
    with f.loop(first, last) as place:
        update = f.at(f["x"], number("order", place) * columns * size)
        whole = columns // lanes * lanes
        for start, stop, step in ((f.integer(0), whole, lanes), (whole, columns, 1)):
            numbers = scalar if step == 1 else f"<{step} x {scalar}>"
            with f.loop(start, stop, step) as column:
                total = f.at(to, column * size)
                f.store(f.load(numbers, total, size) + f.load(numbers, f.at(update, column * size), size), total, size)
    return f
