"""Machine code by which ranks that share memory wait for one another's counters.

Ranks are processes, so what they wait with must be atomic loads and stores. A rank that waits first looks again and
again, then offers its core to others (there may be more ranks than cores), then sleeps a little between looks. After
some milliseconds it gives up, so that Python can see to signals, and tell the watchdog.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from disttensor.kernels import executor, machine

NAPS = 12
"""Of a native that waits, 2 ms, about, before it gives up."""
_LOOKS = 1000  # at a counter, before the core is offered to others
_FEW_LOOKS = 10
_OFFERS_PER_LOOK, _FEWEST_OFFERS = 2, 200  # of the core, before sleeping
_FIRST_NAP_NS, _LONGEST_NAP_NS = 5_000, 200_000

_MEET = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, *[ctypes.c_int64] * 4)


def looks(ranks: int, cores: int) -> int:
    """How often to look before offering the core: hardly where ranks wait for each other's cores."""
    return _LOOKS if ranks <= cores else _FEW_LOOKS


@functools.cache
def meet() -> Callable[[Any, int, int, int, int, int, int], int]:
    """``meet(counters, count, mine, value, goal, looks, naps)``: say that this rank is at `value`, and wait for others.

    `mine` is the address of this rank's counter, which is set to `value` with all that was written before made
    visible; `counters` points to the addresses of `count` counters. Returns 1 when all of them are at `goal` or above,
    or 0 after so many naps (of at most 0.2 ms each), so that the caller can see to signals; with 0 naps it only looks.
    """
    return _MEET(machine.load(source() + _MEETING)["meet"])


def source() -> str:
    """LLVM IR of the internal function ``i1 @wait(counters, count, goal, looks, naps, waited)`` and what it needs."""
    return executor.processor_source() + _WAIT


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
  %are.few = icmp slt i64 %several, {_FEWEST_OFFERS}
  %all.offers = select i1 %are.few, i64 {_FEWEST_OFFERS}, i64 %several
  %offers = add i64 %looks, %all.offers
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
