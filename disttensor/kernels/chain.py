"""Native calls that follow others part by part.

A loop that reads what a matrix product has just made need not wait for all of it: each part of the product is followed
at once, by the same thread, by the loop on what that part has written. So it finds its operand in the cache; and while
one thread waits for memory, as in the update of an optimizer, another multiplies. Neither call's results change, nor
where they are.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from disttensor.kernels import machine
from disttensor.kernels.native import Bound, NativeCall, NativeSequence, Pieces

_CHAIN = """
define void @chain(ptr %arguments, i64 %start, i64 %stop) {
  %first = load ptr, ptr %arguments
  %w1 = getelementptr i64, ptr %arguments, i64 1
  %block1 = load ptr, ptr %w1
  %w2 = getelementptr i64, ptr %arguments, i64 2
  %second = load ptr, ptr %w2
  %w3 = getelementptr i64, ptr %arguments, i64 3
  %block2 = load ptr, ptr %w3
  %w4 = getelementptr i64, ptr %arguments, i64 4
  %ratio = load i64, ptr %w4
  %w5 = getelementptr i64, ptr %arguments, i64 5
  %extent = load i64, ptr %w5
  %w6 = getelementptr i64, ptr %arguments, i64 6
  %piece = load i64, ptr %w6
  br label %each
each:
  %from = phi i64 [%start, %0], [%to, %each]
  %end = add i64 %from, %piece
  %within = icmp slt i64 %end, %stop
  %to = select i1 %within, i64 %end, i64 %stop
  call void %first(ptr %block1, i64 %from, i64 %to)
  %begin = mul i64 %from, %ratio
  %beyond = mul i64 %to, %ratio
  %last = icmp slt i64 %beyond, %extent
  %finish = select i1 %last, i64 %beyond, i64 %extent
  call void %second(ptr %block2, i64 %begin, i64 %finish)
  %more = icmp slt i64 %to, %stop
  br i1 %more, label %each, label %done
done:
  ret void
}
"""


def chained(calls: Iterable[Bound]) -> list[Bound]:
    """The same calls, with those that can follow the one before part by part as one with it."""
    found: list[Bound] = []
    for bound in calls:
        for call in bound if isinstance(bound, NativeSequence) else (bound,):
            before = found[-1] if found else None
            if isinstance(before, NativeCall) and isinstance(call, NativeCall) and _follows(before.pieces, call.pieces):
                found[-1] = _chain(before, call)
            else:
                found.append(call)
    return found


def _chain(first: NativeCall, second: NativeCall) -> NativeCall:
    assert first.pieces is not None
    assert second.pieces is not None
    ratio = first.pieces.step // second.pieces.step
    words = [first.address, first.block, second.address, second.block, ratio, second.extent, max(first.grain, 1)]
    return NativeCall(machine.load(_CHAIN)["chain"], words, first.extent, first.grain, (first, second))


def _follows(first: Pieces | None, second: Pieces | None) -> bool:
    """Whether parts of the second may run while other parts of the first still have to, and read what it has made."""
    if first is None or second is None or first.step % second.step:
        return False
    if not all(r.size == first.results[0].size for r in second.results):
        return False
    reads = any(_same(r, p) for r in first.results for p in second.pieces)
    # What a part reads or writes elsewhere than at its own place must be other memory.
    beside = [(r, p) for r in first.results for p in (*second.pieces, *second.results) if not _same(r, p)]
    reading = [(r, w) for r in first.results for w in second.whole]
    writing = [(w, r) for w in first.whole for r in second.results]
    return reads and not any(np.may_share_memory(a, b) for a, b in (*beside, *reading, *writing))


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.ctypes.data == b.ctypes.data and a.size == b.size and a.itemsize == b.itemsize
