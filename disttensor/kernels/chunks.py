"""Machine code for loops that the ranks of a host share out behind a sum: whoever is there takes the next chunk.

That is what threads do with a loop of dynamic schedule (Polychronopoulos & Kuck, "Guided self-scheduling", 1987), here
in memory that processes share: a word counts the chunks that are taken, the next one those that are done. Both count on
from the number of the sum, which all ranks know, and which grows, so nothing has to be reset, and who comes when all is
done finds nothing left.

There are two instructions (`disttensor.distributed.native_sum` binds them), which do nothing where the sum has not
agreed on it (`meeting.UPDATED`). `take` does chunks until none is left. Several threads of a rank may do so at once:
its work is to be cut in as many parts as there are chunks. `all_done` waits for the chunks of others, which they are at
work on in machine code that no signal interrupts. It is *resumable* (see `native`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from disttensor.kernels import ir, machine, waiting
from disttensor.kernels.ir import Function, Value
from disttensor.kernels.meeting import LEDGER, LOOKS, MARKS, NOTICES, NUMBER, RANKS, UPDATED, WAITED

MOST_LOOPS = 3
"""That ranks share out behind one sum: so many pairs of words are left in the line of a mark."""
MOST_CHUNKS = 1 << 20

# Words of the arguments: the sum's block, where the loop's counters are behind the mark of the first part, the loop's
# kernel and block, the elements of its work, those of a chunk, and how many chunks these are; a word for `all_done`.
BLOCK, PLACE, KERNEL, ARGUMENTS, EXTENT, CHUNK, COUNT, DONE_AT = range(1, 9)


def place(number: int) -> int:
    """Where the counters of a loop are, in bytes behind the mark of the first part."""
    return 16 * (1 + number)


@functools.cache
def addresses() -> Mapping[str, int]:
    """Where the instructions are, by their names."""
    return machine.load(ir.module([_take(), _all_done()], waiting.source(), _COUNTING))


def _take() -> Function:
    f, block, ledger = _instruction("take")
    with f.when(f.field(block, UPDATED) > 0):
        kernel, arguments = (f.field(f["arguments"], word, "ptr") for word in (KERNEL, ARGUMENTS))
        sizes = (f.field(f["arguments"], word) for word in (EXTENT, CHUNK, COUNT))
        f.call("@take_all", _counters(f, block, ledger), f.field(block, NUMBER), kernel, arguments, *sizes)
    return f


def _all_done() -> Function:
    f, block, ledger = _instruction("all_done")
    f.store(f.integer(0), f["arguments"], 8)
    with f.when(f.field(block, UPDATED) > 0):
        at = f.at(f["arguments"], 8 * DONE_AT)
        f.store(f.at(_counters(f, block, ledger), 8), at, 8)
        done = f.field(block, NUMBER) * MOST_CHUNKS + f.field(f["arguments"], COUNT)
        patience = f"{f.field(ledger, LOOKS)}, i64 {waiting.NAPS}, {f.at(ledger, 8 * WAITED)}"
        came = f.emit("i1", f"call i1 @wait({at}, i64 1, {done}, {patience})")
        f.store(f.select(came, f.integer(0), 1), f["arguments"], 8)
    return f


def _instruction(name: str) -> tuple[Function, Value, Value]:
    """A function, the sum's block, and the ledger."""
    f = Function(name, [("ptr", "arguments"), ("i64", "first"), ("i64", "last")])
    block = f.field(f["arguments"], BLOCK, "ptr")
    return f, block, f.field(block, LEDGER, "ptr")


def _counters(f: Function, block: Value, ledger: Value) -> Value:
    slot = f.emit("i64", f"and {f.field(block, NUMBER)}, {NOTICES - 1}")
    marks = f.at(f.field(ledger, MARKS, "ptr"), slot * f.field(ledger, RANKS) * 8)
    return f.at(f.field(marks, 0, "ptr"), f.field(f["arguments"], PLACE))


# `count_up` adds 1 to what a counter says of an operation, and gives what it said before, or -1 if that is `limit`, or
# it counts for a later one.
_COUNTING = f"""
define internal i64 @count_up(ptr %at, i64 %number, i64 %limit) nounwind {{
entry:
  %none = mul i64 %number, {MOST_CHUNKS}
  br label %look
look:
  %seen = load atomic i64, ptr %at monotonic, align 8
  %older = icmp slt i64 %seen, %none
  %now = select i1 %older, i64 %none, i64 %seen
  %count = sub i64 %now, %none
  %left = icmp slt i64 %count, %limit
  br i1 %left, label %ask, label %end
ask:
  %next = add i64 %now, 1
  %pair = cmpxchg ptr %at, i64 %seen, i64 %next acq_rel monotonic
  %got = extractvalue {{ i64, i1 }} %pair, 1
  br i1 %got, label %mine, label %look
mine:
  ret i64 %count
end:
  ret i64 -1
}}

define internal void @take_all(ptr %taken, i64 %number, ptr %kernel, ptr %arguments, i64 %extent, i64 %size, i64 %count)
    nounwind {{
entry:
  %done = getelementptr i64, ptr %taken, i64 1
  br label %next
next:
  %chunk = call i64 @count_up(ptr %taken, i64 %number, i64 %count)
  %some = icmp sge i64 %chunk, 0
  br i1 %some, label %work, label %end
work:
  %start = mul i64 %chunk, %size
  %whole = add i64 %start, %size
  %is.whole = icmp slt i64 %whole, %extent
  %stop = select i1 %is.whole, i64 %whole, i64 %extent
  call void %kernel(ptr %arguments, i64 %start, i64 %stop)
  %ignored = call i64 @count_up(ptr %done, i64 %number, i64 %count)
  br label %next
end:
  ret void
}}
"""
