"""Rows picked and added up by index, in LLVM IR; see `disttensor.kernels.indexing`.

Indices are of type i32 or i64, negative ones count from the end. Only `check` looks whether they are in range.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence

from disttensor.kernels.ir import Function, Value

Iteration = contextlib.AbstractContextManager[tuple[Value, Value]]

_SIZES = {"float": 4, "double": 8}

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
    size = _SIZES[scalar]
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
    indices, count, rows = f.field(f["arguments"], 2, "ptr"), f.field(f["arguments"], 3), f.field(f["arguments"], 4)

    @contextlib.contextmanager
    def each() -> Iterator[tuple[Value, Value]]:
        with f.loop(0, count) as number:
            yield _row(f, indices, kind, number, rows), number

    _sort_by_counting(f, rows, each)
    return f


def order_packets(scalar: str) -> Function:
    """The same of the rows in the packets of all ranks (see `pack`), by the number of their line among all lines.

    The arguments are `starts`, `order`, the packets, and words: the rows of the table, the ranks, the lines of a
    packet, those of them before the rows, and how many numbers a line has.
    """
    f = _start("order_packets")
    packets = f.field(f["arguments"], 2, "ptr")
    rows, ranks, lines, head, width = (f.field(f["arguments"], i) for i in range(3, 8))
    size = _SIZES[scalar]

    def whole(pointer: Value) -> Value:
        return f.emit("i64", f"fptosi {f.load(scalar, pointer, size)} to i64")

    @contextlib.contextmanager
    def each() -> Iterator[tuple[Value, Value]]:
        with f.loop(0, ranks) as rank:
            packet = f.at(packets, rank * lines * width * size)
            with f.loop(0, whole(packet)) as number:
                yield whole(f.at(packet, (number + 1) * size)), rank * lines + head + number

    f.zero(f.field(f["arguments"], 1, "ptr"), ranks * lines * 4)
    _sort_by_counting(f, rows, each)
    return f


def _sort_by_counting(f: Function, rows: Value, each: Callable[[], Iteration]) -> None:
    """Fill `starts` and `order`, the first two arguments; `each` goes through all pairs of a row and a number."""
    starts, numbers = (f.field(f["arguments"], i, "ptr") for i in range(2))

    def place(row: Value, further: int) -> Value:
        return f.at(starts, row * 4, 4 * further)

    def load(pointer: Value) -> Value:
        return f.load("i32", pointer, 4)

    f.zero(starts, (rows + 2) * 4)
    with each() as (row, _):
        at = place(row, 2)
        f.store(load(at) + 1, at, 4)
    before = f.variable(f.constant("i32", 0))
    with f.loop(0, rows + 1) as row:
        before.set(before.get() + load(place(row, 1)))
        f.store(before.get(), place(row, 1), 4)
    with each() as (row, number):
        at = place(row, 1)
        to = f.emit("i64", f"sext {load(at)} to i64")
        f.store(f.emit("i32", f"trunc {number} to i32"), f.at(numbers, to * 4), 4)
        f.store(load(at) + 1, at, 4)


def pack(scalar: str, factors: Sequence[int], vector_bytes: int) -> Function:
    """Make a rank's packet: the rows of a table that are not 0, and which they are.

    Each of several terms has rows of updates, chosen by `starts` and `order` (see `order`), whose sums are multiplied
    by so many factors; the terms are added, and what comes of it is multiplied by a weight. A packet has lines of as
    many numbers as a row: first the number of rows, behind it their numbers, ascending, in as many lines as it takes,
    then the rows. The packets of other ranks, and what is left of this one, become 0.

    The arguments are the packets, the weight, and words: the rows of the table, the numbers of a line, the lines of a
    packet, those of them before the rows, the ranks, and this rank; then, of each term, the updates, `starts`, `order`,
    and the factors.
    """
    f = _start("pack")
    packets, weight = (f.field(f["arguments"], i, "ptr") for i in range(2))
    rows, width, lines, head, ranks, rank = (f.field(f["arguments"], i) for i in range(2, 8))
    size, lanes = _SIZES[scalar], vector_bytes // _SIZES[scalar]
    line_bytes = width * size

    def each_column(change: Callable[[str, Value], None]) -> None:
        whole = width // lanes * lanes
        for first, last, step in ((f.integer(0), whole, lanes), (whole, width, 1)):
            with f.loop(first, last, step) as column:
                change(scalar if step == 1 else f"<{lanes} x {scalar}>", column * size)

    def add(to: Value, line: Value) -> None:
        def change(kind: str, skip: Value) -> None:
            f.store(f.load(kind, f.at(to, skip), size) + f.load(kind, f.at(line, skip), size), f.at(to, skip), size)

        each_column(change)

    def multiply(to: Value, factor: Value) -> None:
        number = f.load(scalar, factor, size)

        def change(kind: str, skip: Value) -> None:
            other = number if kind == scalar else f.splat(kind, number)
            f.store(f.load(kind, f.at(to, skip), size) * other, f.at(to, skip), size)

        each_column(change)

    arguments = itertools.count(8)
    terms = [[f.field(f["arguments"], next(arguments), "ptr") for _ in range(3 + n)] for n in factors]
    packet = f.at(packets, rank * lines * line_bytes)
    f.zero(packets, (rank * lines + head) * line_bytes)
    f.zero(f.at(packet, lines * line_bytes), (ranks - rank - 1) * lines * line_bytes)
    found = f.variable(f.integer(0))
    with f.loop(0, rows) as row:
        bounds = [[_wide(f, starts, row), _wide(f, starts, row + 1)] for _, starts, *_ in terms]
        some = bounds[0][0] < bounds[0][1]
        for first, last in bounds[1:]:
            some = some | (first < last)
        with f.when(some):
            line = f.at(packet, (found.get() + head) * line_bytes)
            f.zero(line, line_bytes)
            for number, ((updates, _, order, *scales), (first, last)) in enumerate(zip(terms, bounds, strict=True)):
                with f.when(first < last):
                    # With several terms a packet has a line more than it may have rows.
                    to = line if not number else f.at(line, line_bytes)
                    if number:
                        f.zero(to, line_bytes)
                    with f.loop(first, last) as place:
                        add(to, f.at(updates, _wide(f, order, place) * line_bytes))
                    for factor in scales:
                        multiply(to, factor)
                    if number:
                        add(line, to)
            multiply(line, weight)
            found.set(found.get() + 1)
            f.store(f.emit(scalar, f"sitofp {row} to {scalar}"), f.at(packet, found.get() * size), size)
    f.store(f.emit(scalar, f"sitofp {found.get()} to {scalar}"), packet, size)
    used = head + found.get()
    f.zero(f.at(packet, used * line_bytes), (lines - used) * line_bytes)
    return f


def _wide(f: Function, array: Value, place: Value) -> Value:
    """An element of an array of i32."""
    return f.emit("i64", f"sext {f.load('i32', f.at(array, place * 4), 4)} to i64")


def sum_chosen(scalar: str, lanes: int) -> Function:
    """Add up the rows of x that a row has chosen, in their order: a part of generated loops.

    `used` says whether `to` may hold other numbers than 0.
    """
    pointers = [("ptr", name) for name in ("to", "used", "x", "starts", "order")]
    f = Function(f"sum_chosen_{scalar}", [*pointers, ("i64", "row"), ("i64", "columns")], "internal")
    to, used, columns, size = f["to"], f["used"], f["columns"], _SIZES[scalar]
    first, last = _wide(f, f["starts"], f["row"]), _wide(f, f["starts"], f["row"] + 1)
    some = f.emit("i64", f"zext {first < last} to i64")
    with f.when((some > 0) | (f.load("i64", used, 8) > 0)):
        f.zero(to, columns * size)
        f.store(some, used, 8)
    with f.loop(first, last) as place:
        update = f.at(f["x"], _wide(f, f["order"], place) * columns * size)
        whole = columns // lanes * lanes
        for start, stop, step in ((f.integer(0), whole, lanes), (whole, columns, 1)):
            numbers = scalar if step == 1 else f"<{step} x {scalar}>"
            with f.loop(start, stop, step) as column:
                total = f.at(to, column * size)
                f.store(f.load(numbers, total, size) + f.load(numbers, f.at(update, column * size), size), total, size)
    return f
