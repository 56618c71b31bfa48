"""Machine code for sums over ranks that share memory: the steps of one within a plan, and a whole one.

A sum cuts its array into one part for each rank, and *whoever is there combines*: a part is claimed by a word in shared
memory, combined, and marked as done. A rank takes its own part first, then each that nobody has claimed (as idle
processors take work in Blumofe & Leiserson, "Scheduling multithreaded computations by work stealing", 1999). So it
needs nothing of the others but that they have entered the sum, and waits at most for one that is just combining.

Sums of buckets are instructions of a plan (`disttensor.distributed.native_sum` binds them). `start` writes this rank's
notice and announces it; if all others have entered, it claims this rank's part, which instructions behind it add
(`shared_memory.weighted_part`), and `leave` marks it as done. `gather` waits for all notices, looks whether they fit
together, and claims this rank's part, if it is not done; `take` claims a neighbour's, one after another; and `finish`
waits until all are done. What is not claimed is left out. Where a sum may also update variables
(`disttensor.distributed.updates`), what adds a part is there twice, first without the update, then, behind `over`, with
it, and one of both is left out; `unless_updated` leaves out what then need not be done behind `finish`. `start`,
`gather` and `finish` are *resumable* (see `native`): where there is anything that only Python can do, they say so, and
Python goes on from what is in shared memory by then.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping

from disttensor.kernels import ir, machine, waiting
from disttensor.kernels.ir import Function, Value
from disttensor.kernels.waiting import NAPS

NOTICES = 64
"""Operations that may be under way at once, a power of 2."""
NOTICE_BYTES = 64
FIRST_WEIGHT = 4
"""Word of a notice; before it: code of operation and dtype (in the upper half the mode), bytes, offset in the segment,
hash of the runs."""
MOST_TAKEN = 8
"""Parts of a sum that one rank takes at most in machine code, its own and its neighbours': looking for more costs."""

# Words of what a rank knows of a group, its *ledger*: sums that it has entered, and completed; the last number that may
# be entered, since its notice overwrites an older one, which all must have completed; nanoseconds that it waited in
# machine code; how long it looks before it offers its core; ranks, and which this is. Then addresses: of tables of
# addresses, one for each rank; of a word that tells natives to leave everything to Python; and of a table of the marks
# of each operation's parts, whether a part is done, and in the word behind it who has claimed it. Last, which block
# entered which operation.
ENTERED, COMPLETED, ROOM, WAITED, RANKS, ME, LOOKS, COUNTERS, COMPLETIONS, NOTICES_AT, BASES = range(11)
OBSERVED, MARKS, OWNERS = range(11, 14)
LEDGER_WORDS = OWNERS + NOTICES

# Words of a sum's block: its number, the ledger, what the notice says; the number for which all notices fit, and for
# which machine code has gathered them; tables of sources and weights; the runs; the mode that the notices agree on, not
# 0 if who adds is to update as well; whether the last sum has updated; whether Python has to make variables private
# before the next; and which parts are to be added, this rank's first, then its neighbours'.
NUMBER, LEDGER, NOTICE, FITS, GATHERED, SOURCES, WEIGHTS, RUNS, WEIGHTS_AT = 0, 1, 2, 6, 7, 8, 9, 10, 11
OFFSET = NOTICE + 2
IS_DOUBLE = WEIGHTS_AT + 4
MODE, UPDATED, LEAVES = range(IS_DOUBLE + 4, IS_DOUBLE + 7)
GO = LEAVES + 1
BLOCK_WORDS = GO + MOST_TAKEN

# Words of the arguments of a sum's instructions: its block, which part they are about, counted from this rank's, how
# many instructions that add it come behind, and how many of these do so without an update. Of `alone` moreover the
# function that combines, how many parts there are to be taken, and which elements each of them has.
BLOCK, PART, BEHIND, ADDING = 1, 2, 3, 4
COMBINE, PARTS, ENDS = 5, 6, 7

_ALONE_CALL = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64)
_CLAIM = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, *[ctypes.c_int64] * 3)


@functools.cache
def claim() -> Callable[[int, int, int, int], int]:
    """``claim(mark, number, ranks, me)``: whether rank `me` is to combine a part of operation `number`.

    It is for one of the ranks that ask, and again for this one as long as the part is not marked as done. Numbers grow,
    so marks need no reset: what is there of an older operation counts as nothing.
    """
    return _CLAIM(_addresses()["claim"])


@functools.cache
def alone() -> Callable[[int], int]:
    """``alone(call)``: a whole sum in one call, with all parts that are to be combined here.

    It returns 1; 0 if it gave up before the sum was entered; or 2 if it gave up later.
    """
    return _ALONE_CALL(_addresses()["alone"])


def addresses() -> Mapping[str, int]:
    """Where the instructions of a sum are, by their names."""
    return _addresses()


@functools.cache
def _addresses() -> Mapping[str, int]:
    functions = [_join(), _enter(), _start(), _leave(), _gather(), _take(), _over(), _finish(), _unless_updated()]
    functions.append(_done())
    return machine.load(ir.module(functions, waiting.source(), _CLAIMING, _ALONE))


def _enter() -> Function:
    f, block, ledger = _resumable("enter", "internal")
    number = f.field(ledger, ENTERED) + 1
    with f.when(number > f.field(ledger, ROOM)):
        least = f.variable(number)
        with f.loop(0, f.field(ledger, RANKS)) as rank:
            counter = _of_rank(f, ledger, COMPLETIONS, rank)
            completed = f.emit("i64", f"load atomic i64, {counter} acquire, align 8")
            least.set(f.minimum(completed, least.get()))
        f.store(least.get() + (NOTICES - 1), f.at(ledger, 8 * ROOM), 8)
    room = number <= f.field(ledger, ROOM)
    # To a sum that an error left open the next one must not be added: Python refuses.
    idle = f.field(ledger, COMPLETED) >= f.field(block, NUMBER)
    with f.when(room & idle & _unobserved(f, ledger) & f.field(block, LEAVES).equals(0)):
        notice = _notice(f, ledger, f.field(ledger, ME), number)
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


def _start() -> Function:
    f, block, ledger = _resumable("start")
    f.store(f.integer(0), f.at(block, 8 * GO), 8)
    f.call("@enter", f["arguments"])
    with f.when(f.field(f["arguments"], 0).equals(0)):
        number = f.field(block, NUMBER)
        with f.when(_wait(f, ledger, f.field(ledger, COUNTERS, "ptr"), number, naps=0)):
            f.call("@join", block, ledger)
            with f.when(f.field(block, FITS).equals(number)):
                _claim(f, block, ledger, f.integer(0))
        _say_what_to_add(f, block)
    return f


def _leave() -> Function:
    f, block, ledger = _instruction("leave")
    _mark(f, block, ledger, f.field(f["arguments"], PART))
    return f


def _gather() -> Function:
    f, block, ledger = _resumable("gather")
    number = f.field(block, NUMBER)
    f.store(f.integer(0), f.at(block, 8 * GO), 8)
    f.store(f.integer(0), f.at(block, 8 * GATHERED), 8)
    oldest = (f.field(ledger, COMPLETED) + 1).equals(number)
    own = f.load("i64", _owner(f, ledger, number), 8).equals(f.emit("i64", f"ptrtoint {block} to i64"))
    came = f.variable(f.integer(0))
    with f.when(oldest & own & _unobserved(f, ledger)):
        came.set(f.emit("i64", f"zext {_wait(f, ledger, f.field(ledger, COUNTERS, 'ptr'), number)} to i64"))
    with f.when(came.get().equals(1)):
        with f.unless(f.field(block, FITS).equals(number)):
            f.call("@join", block, ledger)
        with f.when(f.field(block, FITS).equals(number)):
            f.store(number, f.at(block, 8 * GATHERED), 8)
            _claim(f, block, ledger, f.integer(0))
            _say_what_to_add(f, block)
    return f


def _join() -> Function:
    """Read the notices of a sum that all ranks have entered, and say whether they fit."""
    f = Function("join", [("ptr", "block"), ("ptr", "ledger")], "internal")
    block, ledger = f["block"], f["ledger"]
    number, ranks = f.field(block, NUMBER), f.field(ledger, RANKS)
    fits = f.variable(f.emit("i1", "or i1 true, true"))
    with f.loop(0, ranks) as rank:
        notice = _notice(f, ledger, rank, number)
        offset = f.field(notice, 2)
        same = offset >= 0
        for word in (0, 1, 3):
            same = same & f.field(notice, word).equals(f.field(block, NOTICE + word))
        base = _of_rank(f, ledger, BASES, rank)
        f.store(f.at(base, offset), f.at(f.field(block, SOURCES, "ptr"), rank * 8), 8)
        fits.set(fits.get() & same)
        with f.loop(0, f.field(block, RUNS)) as run:
            weight = f.load("double", f.at(notice, run * 8, 8 * FIRST_WEIGHT), 8)
            f.store(weight, f.at(f.field(block, WEIGHTS, "ptr"), (run * ranks + rank) * 8), 8)
            # A rank of weight 0 adds nothing, whatever its array holds: the sum of fewer is another function.
            fits.set(fits.get() & f.emit("i1", f"fcmp une {weight}, 0.0"))
    with f.when(fits.get()):
        f.store(number, f.at(block, 8 * FITS), 8)
        f.store(f.emit("i64", f"ashr {f.field(block, NOTICE)}, 32"), f.at(block, 8 * MODE), 8)
    return f


def _take() -> Function:
    f, block, ledger = _instruction("take")
    part = f.field(f["arguments"], PART)
    _mark(f, block, ledger, part - 1)
    f.store(f.integer(0), _go(f, block, part), 8)
    with f.when(f.field(block, GATHERED).equals(f.field(block, NUMBER))):
        _claim(f, block, ledger, part)
    _say_what_to_add(f, block)
    return f


def _finish() -> Function:
    f, block, ledger = _resumable("finish")
    number = f.field(block, NUMBER)
    gathered = f.field(block, GATHERED).equals(number)
    with f.unless(gathered):
        _say(f, 0)  # Python has done it all
    with f.when(gathered):
        _mark(f, block, ledger, f.field(f["arguments"], PART))
        with f.when(_wait(f, ledger, _marks(f, ledger, number), number)):
            f.store(f.field(block, MODE), f.at(block, 8 * UPDATED), 8)
            f.store(number, f.at(ledger, 8 * COMPLETED), 8)
            _announce(f, ledger, COMPLETIONS, number)
            _say(f, 0)
    return f


def _over() -> Function:
    """Between the two ways to add a part: what updates, too, is left out where it is not to be."""
    f, block, _ = _instruction("over")
    goes = f.load("i64", _go(f, block, f.field(f["arguments"], PART)), 8)
    _leave_out(f, goes.equals(0) | f.field(block, MODE).equals(0))
    return f


def _unless_updated() -> Function:
    f, block, _ = _instruction("unless_updated")
    _leave_out(f, f.field(block, UPDATED) > 0)
    return f


def _done() -> Function:
    """Mark a part as done: its arguments are the address of the mark, and the number of the operation."""
    f = Function("done", [("ptr", "arguments"), ("i64", "first"), ("i64", "last")])
    mark, number = f.field(f["arguments"], 0, "ptr"), f.field(f["arguments"], 1)
    f.line(f"store atomic {number}, {mark} release, align 8")
    return f


def _instruction(name: str, linkage: str = "") -> tuple[Function, Value, Value]:
    """A function, its block, and the ledger."""
    ends = [] if linkage else [("i64", "first"), ("i64", "last")]
    f = Function(name, [("ptr", "arguments"), *ends], linkage)
    block = f.field(f["arguments"], BLOCK, "ptr")
    return f, block, f.field(block, LEDGER, "ptr")


def _resumable(name: str, linkage: str = "") -> tuple[Function, Value, Value]:
    """An instruction that has given up unless it says otherwise."""
    f, block, ledger = _instruction(name, linkage)
    _say(f, 1)
    return f, block, ledger


def _say(f: Function, status: int) -> None:
    f.store(f.integer(status), f["arguments"], 8)


def _say_what_to_add(f: Function, block: Value) -> None:
    """The work is done; what would add a part that is not claimed is left out, or what would add it otherwise."""
    part, behind, adding = (f.field(f["arguments"], word) for word in (PART, BEHIND, ADDING))
    goes = f.load("i64", _go(f, block, part), 8)
    claimed = f.select(f.field(block, MODE).equals(0), f.integer(0), 0 - adding)
    f.store(f.select(goes.equals(0), 0 - behind, claimed), f["arguments"], 8)


def _leave_out(f: Function, condition: Value) -> None:
    """The instructions behind this one are left out where a condition holds."""
    f.store(f.select(condition, 0 - f.field(f["arguments"], BEHIND), f.integer(0)), f["arguments"], 8)


def _claim(f: Function, block: Value, ledger: Value, part: Value) -> None:
    """Claim a part, counted from this rank's: it is to be added if that succeeds."""
    number, ranks, me = f.field(block, NUMBER), f.field(ledger, RANKS), f.field(ledger, ME)
    mark = _mark_of(f, ledger, number, part)
    f.store(f.emit("i64", f"call i64 @claim({mark}, {number}, {ranks}, {me})"), _go(f, block, part), 8)


def _mark(f: Function, block: Value, ledger: Value, part: Value) -> None:
    """Mark a part as done, if it was added."""
    with f.unless(f.load("i64", _go(f, block, part), 8).equals(0)):
        number = f.field(block, NUMBER)
        f.line(f"store atomic {number}, {_mark_of(f, ledger, number, part)} release, align 8")
        f.store(f.integer(0), _go(f, block, part), 8)


def _go(f: Function, block: Value, part: Value) -> Value:
    return f.at(block, part * 8, 8 * GO)


def _mark_of(f: Function, ledger: Value, number: Value, part: Value) -> Value:
    owner = f.field(ledger, ME) + part
    ranks = f.field(ledger, RANKS)
    owner = f.select(owner < ranks, owner, owner - ranks)
    return f.field(f.at(_marks(f, ledger, number), owner * 8), 0, "ptr")


def _marks(f: Function, ledger: Value, number: Value) -> Value:
    """The addresses of the marks of an operation's parts."""
    return f.at(f.field(ledger, MARKS, "ptr"), _slot(f, number) * f.field(ledger, RANKS) * 8)


def _unobserved(f: Function, ledger: Value) -> Value:
    return f.field(f.field(ledger, OBSERVED, "ptr"), 0).equals(0)


def _slot(f: Function, number: Value) -> Value:
    return f.emit("i64", f"and {number}, {NOTICES - 1}")


def _notice(f: Function, ledger: Value, rank: Value, number: Value) -> Value:
    return f.at(_of_rank(f, ledger, NOTICES_AT, rank), _slot(f, number) * NOTICE_BYTES)


def _owner(f: Function, ledger: Value, number: Value) -> Value:
    return f.at(ledger, _slot(f, number) * 8, 8 * OWNERS)


def _of_rank(f: Function, ledger: Value, table: int, rank: Value) -> Value:
    return f.field(f.at(f.field(ledger, table, "ptr"), rank * 8), 0, "ptr")


def _announce(f: Function, ledger: Value, table: int, number: Value) -> None:
    f.line(f"store atomic {number}, {_of_rank(f, ledger, table, f.field(ledger, ME))} release, align 8")


def _wait(f: Function, ledger: Value, counters: Value, goal: Value, naps: int = NAPS) -> Value:
    count, patience = f.field(ledger, RANKS), f.field(ledger, LOOKS)
    arguments = f"{counters}, {count}, {goal}, {patience}, i64 {naps}, {f.at(ledger, 8 * WAITED)}"
    return f.emit("i1", f"call i1 @wait({arguments})")


# The claim of an operation is number · ranks + the rank that has it.
_CLAIMING = """
define i64 @claim(ptr %mark, i64 %number, i64 %ranks, i64 %me) nounwind {
  %at = getelementptr i64, ptr %mark, i64 1
  %least = mul i64 %number, %ranks
  %mine = add i64 %least, %me
  %seen = load atomic i64, ptr %at monotonic, align 8
  %free = icmp slt i64 %seen, %least
  br i1 %free, label %ask, label %taken
ask:
  %pair = cmpxchg ptr %at, i64 %seen, i64 %mine acq_rel monotonic
  %got = extractvalue { i64, i1 } %pair, 1
  %asked = zext i1 %got to i64
  ret i64 %asked
taken:
  %own = icmp eq i64 %seen, %mine
  %done = load atomic i64, ptr %mark monotonic, align 8
  %undone = icmp slt i64 %done, %number
  %again = and i1 %own, %undone
  %result = zext i1 %again to i64
  ret i64 %result
}
"""

_ALONE = f"""
define i32 @alone(ptr %call) nounwind {{
entry:
  %block.at = getelementptr i64, ptr %call, i64 {BLOCK}
  %part.at = getelementptr i64, ptr %call, i64 {PART}
  %combine.at = getelementptr i64, ptr %call, i64 {COMBINE}
  %parts.at = getelementptr i64, ptr %call, i64 {PARTS}
  %block = load ptr, ptr %block.at
  %combine = load ptr, ptr %combine.at
  %parts = load i64, ptr %parts.at
  store i64 0, ptr %part.at
  call void @enter(ptr %call)
  %not.entered = load i64, ptr %call
  %entered = icmp eq i64 %not.entered, 0
  br i1 %entered, label %gather, label %end
gather:
  call void @gather(ptr %call, i64 0, i64 1)
  %not.gathered = load i64, ptr %call
  %gathered = icmp eq i64 %not.gathered, 0
  br i1 %gathered, label %first, label %end
first:
  %arrays.at = getelementptr i64, ptr %block, i64 {SOURCES}
  %arrays = load ptr, ptr %arrays.at
  br label %each
each:
  %part = phi i64 [0, %first], [%next, %another]
  %go.word = add i64 %part, {GO}
  %go.at = getelementptr i64, ptr %block, i64 %go.word
  %go = load i64, ptr %go.at
  %goes = icmp ne i64 %go, 0
  br i1 %goes, label %add, label %behind
add:
  %word = mul i64 %part, 2
  %ends.at = getelementptr i64, ptr %call, i64 {ENDS}
  %start.at = getelementptr i64, ptr %ends.at, i64 %word
  %stop.at = getelementptr i64, ptr %start.at, i64 1
  %start = load i64, ptr %start.at
  %stop = load i64, ptr %stop.at
  call void %combine(ptr %arrays, ptr %arrays, i64 %start, i64 %stop)
  br label %behind
behind:
  %next = add i64 %part, 1
  %more = icmp slt i64 %next, %parts
  br i1 %more, label %another, label %finish
another:
  store i64 %next, ptr %part.at
  call void @take(ptr %call, i64 0, i64 1)
  br label %each
finish:
  call void @finish(ptr %call, i64 0, i64 1)
  %not.finished = load i64, ptr %call
  %finished = icmp eq i64 %not.finished, 0
  %done = select i1 %finished, i32 1, i32 2
  br label %end
end:
  %result = phi i32 [0, %entry], [2, %gather], [%done, %finish]
  ret i32 %result
}}
"""
