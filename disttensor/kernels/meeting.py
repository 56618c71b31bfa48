"""Machine code for ranks that share memory: waiting for one another's counters, and the steps of a sum within a plan.

Ranks are processes, so what they wait with must be atomic loads and stores. A rank that waits first looks again and
again, then offers its core to others (there may be more ranks than cores), then sleeps a little between looks. After
some milliseconds it gives up, so that Python can see to signals, and tell the watchdog.

A sum of a bucket is four instructions of a plan (`disttensor.distributed.native_sum` binds them): `start` writes this
rank's notice and announces it; `gather` waits for all notices and looks whether they fit together; `part`
(`shared_memory`) adds this rank's part; `finish` announces it and waits for all parts. `start`, `gather` and `finish`
are *resumable* (see `native`): where there is anything that only Python can do, they say so in their first word, and
Python goes on from what they have announced by then.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping
from typing import Any

from disttensor.kernels import executor, ir, machine
from disttensor.kernels.ir import Function, Value

NOTICES = 64
"""Operations that may be under way at once, a power of 2."""
NOTICE_BYTES = 64
FIRST_WEIGHT = 4
"""Word of a notice; before it: code of operation and dtype, bytes, offset in the segment, hash of the runs."""

# Words of what a rank knows of a group, its *ledger*: sums that it has entered, and completed; nanoseconds that it
# waited in machine code; and how long it looks before it offers its core. Then addresses of tables of addresses, one
# for each rank, of a word that tells natives to leave everything to Python, and which block entered which operation.
ENTERED, COMPLETED, WAITED, RANKS, ME, LOOKS, COUNTERS, DONE, NOTICES_AT, BASES, OBSERVED, OWNERS = range(12)
LEDGER_WORDS = OWNERS + NOTICES

# Words of a sum's block: its number, the ledger, what the notice says, and whether its part may be added.
NUMBER, LEDGER, NOTICE, GO, SOURCES, WEIGHTS, RUNS, WEIGHTS_AT = 0, 1, 2, 6, 7, 8, 9, 10
OFFSET = NOTICE + 2
IS_DOUBLE = WEIGHTS_AT + 4
BLOCK_WORDS = IS_DOUBLE + 4

_LOOKS = 1000  # at a counter, before the core is offered to others
_OFFERS_PER_LOOK = 2  # of the core, before sleeping
_NAPS = 12  # of a native that waits: 2 ms, about
_FIRST_NAP_NS, _LONGEST_NAP_NS = 5_000, 200_000

# Words of the ledger of short arrays: exchanges so far, nanoseconds that this rank waited, how long it looks, ranks,
# this rank, and tables of addresses: of all counters, and of all places for arrays, one set after the other.
SHORT_NUMBER, SHORT_WAITED, SHORT_LOOKS, SHORT_RANKS, SHORT_ME, SHORT_COUNTERS, SHORT_PLACES = range(7)
SHORT_WORDS = SHORT_PLACES + 1
SHORT_HEAD = 64
"""Bytes before each place, for what its rank calls."""

# Words of the calls that Python makes. Their address is the one argument, since to convert a few of them takes longer
# than to sum a short array. `exchange`: the ledger, the code, the bytes of a number, the function that combines (see
# `shared_memory`), the bytes of the array, where it is, and where the result goes. `alone`: what the steps of a sum
# get, the function that combines, and which elements are this rank's part.
SHORT_CALL_WORDS, SHORT_IN, SHORT_OUT = 7, 5, 6
ALONE_CALL_WORDS = 5

_CALL = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64)
_COMPLETE = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * 2)
_MEET = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, *[ctypes.c_int64] * 4)


def looks(ranks: int, cores: int) -> int:
    """How often to look before offering the core: a tenth where ranks wait for each other's cores."""
    return _LOOKS if ranks <= cores else _LOOKS // 10


@functools.cache
def meet() -> Callable[[Any, int, int, int, int, int, int], int]:
    """``meet(counters, count, mine, value, goal, looks, naps)``: say that this rank is at `value`, and wait for others.

    `mine` is the address of this rank's counter, which is set to `value` with all that was written before made
    visible; `counters` points to the addresses of `count` counters. Returns 1 when all of them are at `goal` or above,
    or 0 after so many naps (of at most 0.2 ms each), so that the caller can see to signals; with 0 naps it only looks.
    """
    return _MEET(_addresses()["meet"])


@functools.cache
def exchange() -> tuple[Callable[..., int], Callable[..., int]]:
    """An all-reduce of arrays that are so short that every rank reads all: two functions.

    ``exchange(call)`` puts the array where others see it, waits for theirs, and combines them where the result goes,
    perhaps in the array. It returns 1; 0 if it gave up to wait; or 2 if a rank has come with another code or length.
    ``complete(call, naps)`` goes on where it gave up, as often as it takes. There are two sets of places by turns: who
    enters an exchange is done with all arrays of the one before.
    """
    return _CALL(_addresses()["exchange"]), _COMPLETE(_addresses()["complete"])


@functools.cache
def alone() -> Callable[[int], int]:
    """``alone(call)``: a whole sum, `start`, `gather`, this rank's part and `finish`, in one call.

    It returns 1; 0 if it gave up before the sum was entered; or 2 if it gave up later.
    """
    return _CALL(_addresses()["alone"])


def addresses() -> Mapping[str, int]:
    """Where `start`, `gather` and `finish` are."""
    return _addresses()


@functools.cache
def _addresses() -> Mapping[str, int]:
    return machine.load(
        ir.module([_start(), _gather(), _finish()], executor.processor_source(), _WAIT, _MEETING, _ALONE, _SHORT)
    )


def _start() -> Function:
    f = _resumable("start")
    block, ledger = _block_of(f)
    entered = f.field(ledger, ENTERED)
    room = entered - f.field(ledger, COMPLETED) < NOTICES - 2
    # To a sum that an error left open the next one must not be added: Python refuses.
    idle = f.field(ledger, COMPLETED) >= f.field(block, NUMBER)
    with f.when(room & idle & _unobserved(f, ledger)):
        number = entered + 1
        me = f.field(ledger, ME)
        notice = _notice(f, ledger, me, number)
        for word in range(FIRST_WEIGHT):
            f.store(f.field(block, NOTICE + word), f.at(notice, 8 * word), 8)
        with f.loop(0, f.field(block, RUNS)) as run:
            at = f.at(block, run * 8)
            place, target = f.field(at, WEIGHTS_AT, "ptr"), f.at(notice, run * 8, 8 * FIRST_WEIGHT)
            is_double = f.field(at, IS_DOUBLE).equals(1)
            with f.when(is_double):
                f.store(f.load("double", place, 8), target, 8)
            with f.unless(is_double):
                f.store(f.emit("double", f"fpext {f.load('float', place, 4)} to double"), target, 8)
        f.store(number, f.at(block, 8 * NUMBER), 8)
        f.store(number, f.at(ledger, 8 * ENTERED), 8)
        f.store(block, _owner(f, ledger, number), 8)
        _announce(f, ledger, COUNTERS, number)
        _say(f, 0)
    return f


def _gather() -> Function:
    f = _resumable("gather")
    block, ledger = _block_of(f)
    number = f.field(block, NUMBER)
    f.store(f.integer(0), f.at(block, 8 * GO), 8)
    oldest = (f.field(ledger, COMPLETED) + 1).equals(number)
    own = f.load("i64", _owner(f, ledger, number), 8).equals(f.emit("i64", f"ptrtoint {block} to i64"))
    with f.when(oldest & own & _unobserved(f, ledger)), f.when(_wait(f, ledger, COUNTERS, number)):
        fits = f.variable(f.emit("i1", "or i1 true, true"))
        ranks = f.field(ledger, RANKS)
        with f.loop(0, ranks) as rank:
            notice = _notice(f, ledger, rank, number)
            offset = f.field(notice, 2)
            same = offset >= 0
            for word in (0, 1, 3):
                same = same & f.field(notice, word).equals(f.field(block, NOTICE + word))
            base = f.field(f.at(f.field(ledger, BASES, "ptr"), rank * 8), 0, "ptr")
            f.store(f.at(base, offset), f.at(f.field(block, SOURCES, "ptr"), rank * 8), 8)
            fits.set(fits.get() & same)
            with f.loop(0, f.field(block, RUNS)) as run:
                weight = f.load("double", f.at(notice, run * 8, 8 * FIRST_WEIGHT), 8)
                f.store(weight, f.at(f.field(block, WEIGHTS, "ptr"), (run * ranks + rank) * 8), 8)
                # A rank of weight 0 adds nothing, whatever its array holds: the sum of fewer is another function.
                fits.set(fits.get() & f.emit("i1", f"fcmp une {weight}, 0.0"))
        with f.when(fits.get()):
            f.store(f.integer(1), f.at(block, 8 * GO), 8)
            _say(f, 0)
    return f


def _finish() -> Function:
    f = _resumable("finish")
    block, ledger = _block_of(f)
    go = f.field(block, GO).equals(1)
    with f.unless(go):
        _say(f, 0)  # Python has done it all
    with f.when(go):
        number = f.field(block, NUMBER)
        _announce(f, ledger, DONE, number)
        with f.when(_wait(f, ledger, DONE, number)):
            f.store(f.integer(0), f.at(block, 8 * GO), 8)
            f.store(number, f.at(ledger, 8 * COMPLETED), 8)
            _say(f, 0)
    return f


def _resumable(name: str) -> Function:
    """A function that has given up unless it says otherwise."""
    f = Function(name, [("ptr", "arguments"), ("i64", "first"), ("i64", "last")])
    _say(f, 1)
    return f


def _say(f: Function, status: int) -> None:
    f.store(f.integer(status), f["arguments"], 8)


def _block_of(f: Function) -> tuple[Value, Value]:
    block = f.field(f["arguments"], 1, "ptr")
    return block, f.field(block, LEDGER, "ptr")


def _unobserved(f: Function, ledger: Value) -> Value:
    return f.field(f.field(ledger, OBSERVED, "ptr"), 0).equals(0)


def _slot(f: Function, number: Value) -> Value:
    return f.emit("i64", f"and {number}, {NOTICES - 1}")


def _notice(f: Function, ledger: Value, rank: Value, number: Value) -> Value:
    base = f.field(f.at(f.field(ledger, NOTICES_AT, "ptr"), rank * 8), 0, "ptr")
    return f.at(base, _slot(f, number) * NOTICE_BYTES)


def _owner(f: Function, ledger: Value, number: Value) -> Value:
    return f.at(ledger, _slot(f, number) * 8, 8 * OWNERS)


def _announce(f: Function, ledger: Value, table: int, number: Value) -> None:
    counter = f.field(f.at(f.field(ledger, table, "ptr"), f.field(ledger, ME) * 8), 0, "ptr")
    f.line(f"store atomic {number}, {counter} release, align 8")


def _wait(f: Function, ledger: Value, table: int, goal: Value) -> Value:
    counters, count, patience = f.field(ledger, table, "ptr"), f.field(ledger, RANKS), f.field(ledger, LOOKS)
    waited = f.at(ledger, 8 * WAITED)
    arguments = f"{counters}, {count}, {goal}, {patience}, i64 {_NAPS}, {waited}"
    return f.emit("i1", f"call i1 @wait({arguments})")


# Nanoseconds of waiting are added to %waited.
_WAIT = f"""
declare i32 @sched_yield()
declare i32 @nanosleep(ptr, ptr)
declare i32 @clock_gettime(i32, ptr)

define internal i64 @now() nounwind {{
  %time = alloca [2 x i64]
  %ignored = call i32 @clock_gettime(i32 1, ptr %time)
  %seconds = load i64, ptr %time
  %at = getelementptr i64, ptr %time, i64 1
  %rest = load i64, ptr %at
  %whole = mul i64 %seconds, 1000000000
  %sum = add i64 %whole, %rest
  ret i64 %sum
}}

define internal i1 @wait(ptr %counters, i64 %count, i64 %goal, i64 %looks, i64 %naps, ptr %waited) nounwind {{
entry:
  %time = alloca [2 x i64]
  %nanoseconds = getelementptr i64, ptr %time, i64 1
  store i64 0, ptr %time
  store i64 {_FIRST_NAP_NS}, ptr %nanoseconds
  %several = mul i64 %looks, {_OFFERS_PER_LOOK}
  %offers = add i64 %looks, %several
  %all.naps = add i64 %offers, %naps
  %only = icmp eq i64 %naps, 0
  br label %next
next:
  %r = phi i64 [0, %entry], [%r.next, %arrived]
  %tries = phi i64 [0, %entry], [%tries.same, %arrived]
  %begun = phi i64 [0, %entry], [%begun.same, %arrived]
  %any = icmp slt i64 %r, %count
  br i1 %any, label %look.first, label %end
look.first:
  %slot = getelementptr ptr, ptr %counters, i64 %r
  %counter = load ptr, ptr %slot
  br label %look
look:
  %tries.same = phi i64 [%tries, %look.first], [%tries.next, %again]
  %begun.same = phi i64 [%begun, %look.first], [%begun.now, %again]
  %seen = load atomic i64, ptr %counter acquire, align 8
  %there = icmp sge i64 %seen, %goal
  br i1 %there, label %arrived, label %missing
arrived:
  %r.next = add i64 %r, 1
  br label %next
missing:
  br i1 %only, label %late, label %patience
late:
  ret i1 false
patience:
  %is.first = icmp eq i64 %tries.same, 0
  br i1 %is.first, label %first, label %more
first:
  %start = call i64 @now()
  br label %more
more:
  %begun.now = phi i64 [%begun.same, %patience], [%start, %first]
  %tries.next = add i64 %tries.same, 1
  %looking = icmp slt i64 %tries.same, %looks
  br i1 %looking, label %spin, label %offer
spin:
  call void @pause()
  br label %again
offer:
  %awake = icmp slt i64 %tries.same, %offers
  br i1 %awake, label %yield, label %tired
yield:
  %ignored = call i32 @sched_yield()
  br label %again
tired:
  %enough = icmp sge i64 %tries.same, %all.naps
  br i1 %enough, label %end, label %nap
nap:
  %ignored.nap = call i32 @nanosleep(ptr %time, ptr null)
  %length = load i64, ptr %nanoseconds
  %double = mul i64 %length, 2
  %over = icmp sgt i64 %double, {_LONGEST_NAP_NS}
  %longer = select i1 %over, i64 {_LONGEST_NAP_NS}, i64 %double
  store i64 %longer, ptr %nanoseconds
  br label %again
again:
  br label %look
end:
  %came = phi i1 [true, %next], [false, %tired]
  %since = phi i64 [%begun, %next], [%begun.now, %tired]
  %did.wait = icmp ne i64 %since, 0
  br i1 %did.wait, label %note, label %return
note:
  %stop = call i64 @now()
  %length.waited = sub i64 %stop, %since
  %before = load i64, ptr %waited
  %after = add i64 %before, %length.waited
  store i64 %after, ptr %waited
  br label %return
return:
  ret i1 %came
}}
"""

_MEETING = """
define i32 @meet(ptr %counters, i64 %count, ptr %mine, i64 %value, i64 %goal, i64 %looks, i64 %naps) nounwind {
  %ignored = alloca i64
  store i64 0, ptr %ignored
  store atomic i64 %value, ptr %mine release, align 8
  %came = call i1 @wait(ptr %counters, i64 %count, i64 %goal, i64 %looks, i64 %naps, ptr %ignored)
  %result = zext i1 %came to i32
  ret i32 %result
}
"""

_ALONE = """
define i32 @alone(ptr %call) nounwind {
entry:
  call void @start(ptr %call, i64 0, i64 1)
  %not.started = load i64, ptr %call
  %started = icmp eq i64 %not.started, 0
  br i1 %started, label %entered, label %end
entered:
  call void @gather(ptr %call, i64 0, i64 1)
  %not.gathered = load i64, ptr %call
  %gathered = icmp eq i64 %not.gathered, 0
  br i1 %gathered, label %part, label %end
part:
  %block.at = getelementptr i64, ptr %call, i64 1
  %combine.at = getelementptr i64, ptr %call, i64 2
  %start.at = getelementptr i64, ptr %call, i64 3
  %stop.at = getelementptr i64, ptr %call, i64 4
  %block = load ptr, ptr %block.at
  %combine = load ptr, ptr %combine.at
  %first = load i64, ptr %start.at
  %last = load i64, ptr %stop.at
  %arrays.at = getelementptr i64, ptr %block, i64 SOURCES
  %arrays = load ptr, ptr %arrays.at
  call void %combine(ptr %arrays, ptr %arrays, i64 %first, i64 %last)
  call void @finish(ptr %call, i64 0, i64 1)
  %not.finished = load i64, ptr %call
  %finished = icmp eq i64 %not.finished, 0
  %done = select i1 %finished, i32 1, i32 2
  br label %end
end:
  %result = phi i32 [0, %entry], [2, %entered], [%done, %part]
  ret i32 %result
}
""".replace("SOURCES", str(SOURCES))

_SHORT = f"""
%short = type {{ i64, i64, i64, i64, i64, ptr, ptr }} ; the words of its ledger

declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

define internal ptr @places(ptr %ledger) nounwind {{
  %number = load i64, ptr %ledger
  %ranks.at = getelementptr %short, ptr %ledger, i64 0, i32 {SHORT_RANKS}
  %ranks = load i64, ptr %ranks.at
  %table.at = getelementptr %short, ptr %ledger, i64 0, i32 {SHORT_PLACES}
  %table = load ptr, ptr %table.at
  %turn = and i64 %number, 1
  %skip = mul i64 %turn, %ranks
  %places = getelementptr ptr, ptr %table, i64 %skip
  ret ptr %places
}}

define i32 @exchange(ptr %call) nounwind {{
  %ledger = load ptr, ptr %call
  %code.from = getelementptr i64, ptr %call, i64 1
  %bytes.from = getelementptr i64, ptr %call, i64 4
  %in.at = getelementptr i64, ptr %call, i64 {SHORT_IN}
  %code = load i64, ptr %code.from
  %bytes = load i64, ptr %bytes.from
  %in = load ptr, ptr %in.at
  %before = load i64, ptr %ledger
  %number = add i64 %before, 1
  store i64 %number, ptr %ledger
  %me.at = getelementptr %short, ptr %ledger, i64 0, i32 {SHORT_ME}
  %me = load i64, ptr %me.at
  %places = call ptr @places(ptr %ledger)
  %place.at = getelementptr ptr, ptr %places, i64 %me
  %place = load ptr, ptr %place.at
  %code.at = getelementptr i8, ptr %place, i64 -{SHORT_HEAD}
  %bytes.at = getelementptr i64, ptr %code.at, i64 1
  store i64 %code, ptr %code.at
  store i64 %bytes, ptr %bytes.at
  call void @llvm.memcpy.p0.p0.i64(ptr %place, ptr %in, i64 %bytes, i1 false)
  %counters.at = getelementptr %short, ptr %ledger, i64 0, i32 {SHORT_COUNTERS}
  %counters = load ptr, ptr %counters.at
  %counter.at = getelementptr ptr, ptr %counters, i64 %me
  %counter = load ptr, ptr %counter.at
  store atomic i64 %number, ptr %counter release, align 8
  %result = call i32 @complete(ptr %call, i64 {_NAPS})
  ret i32 %result
}}

define i32 @complete(ptr %call, i64 %naps) nounwind {{
entry:
  %ledger = load ptr, ptr %call
  %code.from = getelementptr i64, ptr %call, i64 1
  %bytes.from = getelementptr i64, ptr %call, i64 4
  %code = load i64, ptr %code.from
  %bytes = load i64, ptr %bytes.from
  %number = load i64, ptr %ledger
  %waited.at = getelementptr %short, ptr %ledger, i64 0, i32 {SHORT_WAITED}
  %looks.at = getelementptr %short, ptr %ledger, i64 0, i32 {SHORT_LOOKS}
  %looks = load i64, ptr %looks.at
  %ranks.at = getelementptr %short, ptr %ledger, i64 0, i32 {SHORT_RANKS}
  %ranks = load i64, ptr %ranks.at
  %counters.at = getelementptr %short, ptr %ledger, i64 0, i32 {SHORT_COUNTERS}
  %counters = load ptr, ptr %counters.at
  %places = call ptr @places(ptr %ledger)
  %came = call i1 @wait(ptr %counters, i64 %ranks, i64 %number, i64 %looks, i64 %naps, ptr %waited.at)
  br i1 %came, label %each, label %late
late:
  ret i32 0
each:
  %r = phi i64 [0, %entry], [%r.next, %same]
  %place.at = getelementptr ptr, ptr %places, i64 %r
  %place = load ptr, ptr %place.at
  %code.at = getelementptr i8, ptr %place, i64 -{SHORT_HEAD}
  %bytes.at = getelementptr i64, ptr %code.at, i64 1
  %their.code = load i64, ptr %code.at
  %their.bytes = load i64, ptr %bytes.at
  %same.code = icmp eq i64 %their.code, %code
  %same.bytes = icmp eq i64 %their.bytes, %bytes
  %fits = and i1 %same.code, %same.bytes
  br i1 %fits, label %same, label %other
other:
  ret i32 2
same:
  %r.next = add i64 %r, 1
  %more = icmp slt i64 %r.next, %ranks
  br i1 %more, label %each, label %all
all:
  %unit.at = getelementptr i64, ptr %call, i64 2
  %unit = load i64, ptr %unit.at
  %count = sdiv i64 %bytes, %unit
  %combine.at = getelementptr i64, ptr %call, i64 3
  %combine = load ptr, ptr %combine.at
  %targets = getelementptr i64, ptr %call, i64 {SHORT_OUT}
  call void %combine(ptr %places, ptr %targets, i64 0, i64 %count)
  ret i32 1
}}
"""
