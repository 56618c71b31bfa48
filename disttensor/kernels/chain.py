"""Native calls that follow others part by part.

A loop that reads what a matrix product has just made need not wait for all of it: each part of the product is followed
at once, by the same thread, by the loop on what that part has written. So it finds its operand in the cache; and while
one thread waits for memory, as in the update of an optimizer, another multiplies. Neither call's results change, nor
where they are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np

from disttensor.kernels import ir, machine
from disttensor.kernels.ir import Function
from disttensor.kernels.native import Bound, NativeCall, NativeSequence, Pieces, address_of


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


def by_pieces(first: NativeCall, second: NativeCall, skip: int, at_once: int) -> NativeCall:
    """A call with another behind each `at_once` elements of it, on the same ones, which that counts from `skip` on."""
    words = [first.address, first.block, second.address, second.block, 1, second.extent, at_once, skip]
    grain = at_once if first.grain and second.grain else 0
    return NativeCall(_address(), words, first.extent, grain, (first, second))


def _chain(first: NativeCall, second: NativeCall) -> NativeCall:
    assert first.pieces is not None
    assert second.pieces is not None
    ratio = first.pieces.step // second.pieces.step
    at_once = first.grain or max(first.extent, 1)  # what is one part stays one
    words = [first.address, first.block, second.address, second.block, ratio, second.extent, at_once, 0]
    return NativeCall(_address(), words, first.extent, first.grain, (first, second))


@functools.cache
def _address() -> int:
    return machine.load(ir.module([_chain_parts()]))["chain"]


def _chain_parts() -> Function:
    """The native kernel of both: a grain of the first, then what that has made with the second."""
    f = Function("chain", [("ptr", "arguments"), ("i64", "start"), ("i64", "stop")])
    first, first_block, second, second_block = (f.field(f["arguments"], i, "ptr") for i in range(4))
    ratio, extent, grain, skip = (f.field(f["arguments"], i) for i in range(4, 8))
    with f.loop(f["start"], f["stop"], grain) as begin:
        end = f.minimum(begin + grain, f["stop"])
        f.call(first.name, first_block, begin, end)
        f.call(second.name, second_block, begin * ratio + skip, f.minimum(end * ratio + skip, extent))
    return f


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
    # Later parts of the first read their own places after earlier parts of the second are written.
    ahead = [(p, r) for p in first.pieces for r in second.results if not _same(p, r)]
    return reads and not any(np.may_share_memory(a, b) for a, b in (*beside, *reading, *writing, *ahead))


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.size == b.size and a.itemsize == b.itemsize and address_of(a) == address_of(b)
