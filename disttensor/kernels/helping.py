"""Machine code by which ranks that share memory do parts of one another's work.

A rank *offers* calls whose operands and results lie in memory that others see: it cuts them into units, and writes into
its *area* what they are, where its arrays lie, and which unit is the next. Units are taken one by one, by the rank
itself (`work`) and by whoever has nothing better to do (`help`), which is guided self-scheduling with chunks of one
(Polychronopoulos and Kuck, 1987). A call is begun when all units of the calls before it are done.

Who helps runs the same machine code as the owner, on a copy of the arguments in which each address of the owner's
arrays is moved to where it sees them. So no bit depends on who does what.

A number says what an area's counters are about, that of the sum for which the work is done. It is the upper part of the
counter of units taken, and of that of units done: who comes too late to take one finds another number.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from disttensor.kernels import ir, machine, waiting
from disttensor.kernels.ir import Function, Value
from disttensor.kernels.meeting import BASES, COUNTERS, ENTERED, LOOKS, ME, RANKS, WAITED
from disttensor.kernels.waiting import NAPS

# Words of an area; each counter has a line of the cache for itself: units taken, and units done; then what is offered,
# how many units had been taken when the last offer ended, and where in the owner's memory the arrays lie.
TAKEN, DONE, WHAT, ENDED, PLACES = 0, 8, 16, 17, 18
MOST_ARRAYS = 46
AREA_BYTES = 8 * (PLACES + MOST_ARRAYS)

_SHIFT = 16
_CLOSED = (1 << _SHIFT) - 1  # units taken of no sum: there are none to be had
MOST_UNITS = _CLOSED - 1

# Words of a block: the ledger of the group (see `meeting`); addresses of all areas; a number for what is offered; how
# many arrays, and where each of them lies; how many units, and a table of them; a table of calls; the number of the sum
# for which it is offered; and how many units of others this rank has done.
LEDGER, AREAS, FACTS, ARRAYS, ARRAYS_AT, UNITS, UNITS_AT, CALLS_AT, NUMBER, HELPED = range(10)
BLOCK_WORDS = 10
# Of a unit: its call, where it begins and ends, and how many units have to be done before.
CALL, START, STOP, NEEDS = range(4)
UNIT_WORDS = 4
# Of a call: the kernel, its arguments, and how many; a table of those that are addresses in arrays, and how many; and
# room for a copy of the arguments.
KERNEL, ARGUMENTS, COUNT, MOVED_AT, MOVED, COPY = range(6)
CALL_WORDS = 6
# Of an argument that is an address: which argument, in which array, and how many bytes behind the beginning of that.
ARGUMENT, ARRAY, BYTES = range(3)
MOVED_WORDS = 3

_LOOKS = 300  # for an offer that is about to be made


@functools.cache
def addresses() -> Mapping[str, int]:
    """Where the instructions are; their arguments are a word for the status, and the address of a block.

    ``close`` ends what was offered before: no more units are taken. ``offer`` gives up while others are at work on what
    was offered before, and ``work`` if they keep this rank waiting for units that they have taken: either may be called
    again. The others never do.
    """
    functions = [_unit(), _close(), _offer(), _work(), _help()]
    return machine.load(ir.module(functions, waiting.source(), _LOOK, _UNITS, _TO_THE_END))


def _instruction(name: str) -> tuple[Function, Value, Value]:
    """A function, its block, and the ledger."""
    f = Function(name, [("ptr", "arguments"), ("i64", "first"), ("i64", "last")])
    block = f.field(f["arguments"], 1, "ptr")
    return f, block, f.field(block, LEDGER, "ptr")


def _close() -> Function:
    f, block, ledger = _instruction("close")
    area = _of_rank(f, f.field(block, AREAS, "ptr"), f.field(ledger, ME))
    taken = f.emit("i64", f"atomicrmw xchg {f.at(area, 8 * TAKEN)}, i64 {_CLOSED} acq_rel, align 8")
    with f.unless(taken.equals(_CLOSED)):
        f.store(taken, f.at(area, 8 * ENDED), 8)
    f.store(f.integer(0), f["arguments"], 8)
    return f


def _offer() -> Function:
    """Offer units for the sum that is entered next."""
    f, block, ledger = _instruction("offer")
    area = _of_rank(f, f.field(block, AREAS, "ptr"), f.field(ledger, ME))
    f.call("@close", f["arguments"], 0, 1)
    done = f.emit("i64", f"load atomic i64, {f.at(area, 8 * DONE)} acquire, align 8")
    is_over = done.equals(f.field(area, ENDED))
    f.store(f.select(is_over, f.integer(0), 1), f["arguments"], 8)
    with f.when(is_over):
        number = f.field(ledger, ENTERED) + 1
        f.store(number, f.at(block, 8 * NUMBER), 8)
        f.store(f.field(block, FACTS), f.at(area, 8 * WHAT), 8)
        f.copy(f.at(area, 8 * PLACES), f.field(block, ARRAYS_AT, "ptr"), f.field(block, ARRAYS) * 8)
        begin = f.emit("i64", f"shl {number}, {_SHIFT}")
        for word in (DONE, TAKEN):
            f.line(f"store atomic {begin}, {f.at(area, 8 * word)} release, align 8")
    return f


def _work() -> Function:
    """Do what this rank has offered."""
    f, block, ledger = _instruction("work")
    area = _of_rank(f, f.field(block, AREAS, "ptr"), f.field(ledger, ME))
    begin = f.emit("i64", f"shl {f.field(block, NUMBER)}, {_SHIFT}")
    patience = f"{f.field(ledger, LOOKS)}, {f.at(ledger, 8 * WAITED)}"
    done = f.emit("i1", f"call i1 @to_the_end({block}, {area}, {begin}, {f.field(block, UNITS)}, {patience})")
    f.store(f.select(done, f.integer(0), 1), f["arguments"], 8)
    return f


def _help() -> Function:
    """Do units that others have offered for the sum for which this rank offered its own."""
    f, block, ledger = _instruction("help")
    areas, number, ranks = f.field(block, AREAS, "ptr"), f.field(block, NUMBER), f.field(ledger, RANKS)
    with f.loop(1, ranks) as distance:
        after = f.field(ledger, ME) + distance
        rank = f.select(after < ranks, after, after - ranks)
        area = _of_rank(f, areas, rank)
        f.call("@look", area, _of_rank(f, f.field(ledger, COUNTERS, "ptr"), rank), number)
        with f.when(f.field(area, WHAT).equals(f.field(block, FACTS))):
            base = _of_rank(f, f.field(ledger, BASES, "ptr"), rank)
            f.emit("i64", f"call i64 @units({block}, {area}, {base})")
    f.store(f.integer(0), f["arguments"], 8)
    return f


def _unit() -> Function:
    """Do one unit, of this rank's own work if there is no base, else of work whose arrays lie in the memory there."""
    f = Function("unit", [("ptr", "block"), ("ptr", "area"), ("ptr", "base"), ("ptr", "unit")], "internal")
    block, unit = f["block"], f["unit"]
    call = f.at(f.field(block, CALLS_AT, "ptr"), f.field(unit, CALL) * (8 * CALL_WORDS))
    kernel, arguments, start, stop = (
        f.field(call, KERNEL, "ptr"), f.field(call, ARGUMENTS, "ptr"), f.field(unit, START), f.field(unit, STOP)
    )  # fmt: skip
    is_own = f.emit("i1", f"icmp eq {f['base']}, null")
    with f.when(is_own):
        f.call(kernel.name, arguments, start, stop)
    with f.unless(is_own):
        copy = f.field(call, COPY, "ptr")
        f.copy(copy, arguments, f.field(call, COUNT) * 8)
        with f.loop(0, f.field(call, MOVED)) as i:
            moved = f.at(f.field(call, MOVED_AT, "ptr"), i * (8 * MOVED_WORDS))
            place = f.field(f.at(f["area"], f.field(moved, ARRAY) * 8), PLACES)
            address = f.at(f["base"], place, f.field(moved, BYTES))
            f.store(address, f.at(copy, f.field(moved, ARGUMENT) * 8), 8)
        f.call(kernel.name, copy, start, stop)
        f.store(f.field(block, HELPED) + 1, f.at(block, 8 * HELPED), 8)
    return f


def _of_rank(f: Function, table: Value, rank: Value) -> Value:
    return f.field(f.at(table, rank * 8), 0, "ptr")


# Wait a little for what a rank that has not entered a sum yet offers for it.
_LOOK = f"""
define internal void @look(ptr %area, ptr %entered, i64 %number) nounwind {{
entry:
  %taken = getelementptr i64, ptr %area, i64 {TAKEN}
  %begin = shl i64 %number, {_SHIFT}
  br label %next
next:
  %i = phi i64 [0, %entry], [%i.next, %again]
  %seen = load atomic i64, ptr %taken acquire, align 8
  %offered = icmp sge i64 %seen, %begin
  %so.far = load atomic i64, ptr %entered acquire, align 8
  %late = icmp sge i64 %so.far, %number
  %tired = icmp sge i64 %i, {_LOOKS}
  %known = or i1 %offered, %late
  %enough = or i1 %known, %tired
  br i1 %enough, label %end, label %again
again:
  call void @pause()
  %i.next = add i64 %i, 1
  br label %next
end:
  ret void
}}
"""

# Do units until none can be taken; returns how many have to be done before there is another one, or all.
_UNITS = f"""
define internal i64 @units(ptr %block, ptr %area, ptr %base) nounwind {{
entry:
  %number.at = getelementptr i64, ptr %block, i64 {NUMBER}
  %count.at = getelementptr i64, ptr %block, i64 {UNITS}
  %units.at = getelementptr i64, ptr %block, i64 {UNITS_AT}
  %taken.at = getelementptr i64, ptr %area, i64 {TAKEN}
  %done.at = getelementptr i64, ptr %area, i64 {DONE}
  %number = load i64, ptr %number.at
  %count = load i64, ptr %count.at
  %units = load ptr, ptr %units.at
  %begin = shl i64 %number, {_SHIFT}
  br label %next
next:
  %taken = load atomic i64, ptr %taken.at acquire, align 8
  %i = sub i64 %taken, %begin
  %any = icmp ult i64 %i, %count
  br i1 %any, label %ask, label %none
ask:
  %word = mul i64 %i, {UNIT_WORDS}
  %unit = getelementptr i64, ptr %units, i64 %word
  %needs.at = getelementptr i64, ptr %unit, i64 {NEEDS}
  %needs = load i64, ptr %needs.at
  %done = load atomic i64, ptr %done.at acquire, align 8
  %so.far = sub i64 %done, %begin
  %ready = icmp sge i64 %so.far, %needs
  br i1 %ready, label %take, label %blocked
take:
  %one.more = add i64 %taken, 1
  %pair = cmpxchg ptr %taken.at, i64 %taken, i64 %one.more acq_rel monotonic
  %got = extractvalue {{ i64, i1 }} %pair, 1
  br i1 %got, label %do, label %next
do:
  call void @unit(ptr %block, ptr %area, ptr %base, ptr %unit)
  %before = atomicrmw add ptr %done.at, i64 1 acq_rel, align 8
  br label %next
none:
  ret i64 %count
blocked:
  ret i64 %needs
}}
"""

# Do what was offered, with others, to the end: whether it came within so many looks and naps.
_TO_THE_END = f"""
define internal i1 @to_the_end(ptr %block, ptr %area, i64 %begin, i64 %count, i64 %looks, ptr %waited) nounwind {{
entry:
  %counter = alloca ptr
  %done.at = getelementptr i64, ptr %area, i64 {DONE}
  store ptr %done.at, ptr %counter
  br label %again
again:
  %needed = call i64 @units(ptr %block, ptr %area, ptr null)
  %goal = add i64 %begin, %needed
  %came = call i1 @wait(ptr %counter, i64 1, i64 %goal, i64 %looks, i64 {NAPS}, ptr %waited)
  br i1 %came, label %more, label %end
more:
  %is.all = icmp eq i64 %needed, %count
  br i1 %is.all, label %end, label %again
end:
  ret i1 %came
}}
"""
