"""Machine code for ranks that share memory: waiting for one another's counters, and combining one another's arrays.

Ranks are processes, so what they wait with must be atomic loads and stores, and a rank that waits must leave its core
to the one it waits for where there are more ranks than cores. Both are written as LLVM IR (see `machine`), as are the
sums, which add the ranks' elements in the order of ranks: the result depends neither on who adds nor on timing.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from disttensor.kernels import machine

_SPINS = 400  # looks at a counter before the core is offered to others
_YIELDS = 200  # offers of the core before sleeping
_FIRST_NAP_NS, _LONGEST_NAP_NS = 5_000, 200_000

_WAIT = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, *[ctypes.c_int64] * 3)
_COMBINE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)

_WEIGHTED = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


@functools.cache
def meet() -> Callable[[Any, int, int, int, int, int], int]:
    """``meet(counters, count, mine, value, goal, naps)``: say that this rank is at `value`, and wait for the others.

    `mine` is the address of this rank's counter, which is set to `value` with all that was written before made
    visible; `counters` points to the addresses of `count` counters. Returns 1 when all of them are at `goal` or above,
    or 0 after so many naps (of at most 0.2 ms each), so that the caller can see to signals; with 0 naps it only looks.
    """
    return _WAIT(machine.load(_MEET)["meet"])


@functools.cache
def combine(dtype: str, op: str, sources: int, targets: int) -> Callable[[Any, Any, int, int], None]:
    """``combine(sources, targets, start, stop)``: ``targets[t][i] = op(sources[0][i], sources[1][i], ...)``.

    Sources and targets are given by pointers to their addresses; a target may be a source. Elements are combined from
    left to right, those of two bytes in float32 with one rounding at the end. NaN wins in "max" and "min".

    Parameters
    ----------
    dtype : str
        One of `combines`.
    op : {"sum", "max", "min"}
        The sum of booleans is their logical or.
    sources, targets : int
        How many there are.
    """
    return _COMBINE(machine.load(_combine_source(dtype, op, sources, targets))["combine"])


@functools.cache
def weighted_sum(dtype: str, sources: int, targets: int) -> Callable[[Any, Any, Any, int, int], None]:
    """``weighted_sum(sources, targets, weights, start, stop)``: ``targets[t][i] = Σᵣ weights[r]·sources[r][i]``.

    As `combine`. The weights, doubles, are rounded to the dtype (to float32 for those of two bytes), and so is each
    product before it is added.
    """
    return _WEIGHTED(machine.load(_combine_source(dtype, "sum", sources, targets, weighted=True))["combine"])


def combines(dtype: str) -> bool:
    """Whether `combine` can be compiled for a dtype on this processor."""
    if dtype == "float16":
        return machine.has("f16c") or machine.has("fullfp16")
    return dtype in _KINDS


_MEET = f"""
declare i32 @sched_yield()
declare i32 @nanosleep(ptr, ptr)

define i32 @meet(ptr %counters, i64 %count, ptr %mine, i64 %value, i64 %goal, i64 %naps) nounwind {{
entry:
  %time = alloca [2 x i64]
  %seconds = getelementptr i64, ptr %time, i64 0
  %nanoseconds = getelementptr i64, ptr %time, i64 1
  store i64 0, ptr %seconds
  store i64 {_FIRST_NAP_NS}, ptr %nanoseconds
  store atomic i64 %value, ptr %mine release, align 8
  br label %next
next:
  %r = phi i64 [0, %entry], [%r.next, %arrived]
  %looks = phi i64 [0, %entry], [%looks.same, %arrived]
  %slept = phi i64 [0, %entry], [%slept.same, %arrived]
  %any = icmp slt i64 %r, %count
  br i1 %any, label %look.first, label %all
look.first:
  %slot = getelementptr ptr, ptr %counters, i64 %r
  %counter = load ptr, ptr %slot
  br label %look
look:
  %looks.same = phi i64 [%looks, %look.first], [%looks.next, %again], [%looks.next, %nap]
  %slept.same = phi i64 [%slept, %look.first], [%slept.same, %again], [%slept.next, %nap]
  %seen = load atomic i64, ptr %counter acquire, align 8
  %there = icmp sge i64 %seen, %goal
  br i1 %there, label %arrived, label %missing
arrived:
  %r.next = add i64 %r, 1
  br label %next
missing:
  %only = icmp eq i64 %naps, 0
  br i1 %only, label %late, label %patience
patience:
  %looks.next = add i64 %looks.same, 1
  %spin = icmp slt i64 %looks.next, {_SPINS}
  br i1 %spin, label %again, label %offer
again:
  br label %look
offer:
  %awake = icmp slt i64 %looks.next, {_SPINS + _YIELDS}
  br i1 %awake, label %yield, label %tired
yield:
  %ignored = call i32 @sched_yield()
  br label %again
tired:
  %enough = icmp sge i64 %slept.same, %naps
  br i1 %enough, label %late, label %nap
nap:
  %ignored.nap = call i32 @nanosleep(ptr %time, ptr null)
  %length = load i64, ptr %nanoseconds
  %double = mul i64 %length, 2
  %over = icmp sgt i64 %double, {_LONGEST_NAP_NS}
  %longer = select i1 %over, i64 {_LONGEST_NAP_NS}, i64 %double
  store i64 %longer, ptr %nanoseconds
  %slept.next = add i64 %slept.same, 1
  br label %look
late:
  ret i32 0
all:
  ret i32 1
}}"""


# Of an element in memory and in registers.
_KINDS = {
    "bool": ("i8", "i8"), "int8": ("i8", "i8"), "int16": ("i16", "i16"), "int32": ("i32", "i32"),
    "int64": ("i64", "i64"), "uint8": ("i8", "i8"), "uint16": ("i16", "i16"), "uint32": ("i32", "i32"),
    "uint64": ("i64", "i64"), "float16": ("half", "float"), "bfloat16": ("i16", "float"), "float32": ("float", "float"),
    "float64": ("double", "double"),
}  # fmt: skip


class _Body:
    """The lines of a loop's body, with names for their results."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def emit(self, text: str) -> str:
        self.lines.append(f"  %t{len(self.lines)} = {text}")
        return f"%t{len(self.lines) - 1}"

    def do(self, text: str) -> None:
        self.lines.append(f"  {text}")


def _combine_source(dtype: str, op: str, sources: int, targets: int, weighted: bool = False) -> str:
    memory, kind = _KINDS[dtype]
    head = _pointers("source", sources) + _pointers("target", targets)
    if weighted:
        head += _weights(kind, sources)
    body = _Body()
    total = ""
    for r in range(sources):
        address = body.emit(f"getelementptr {memory}, ptr %source{r}, i64 %i")
        value = _widen(body, dtype, body.emit(f"load {memory}, ptr {address}, align {_size(memory)}, {_INDEPENDENT}"))
        if weighted:
            product = body.emit(f"fmul {kind} {value}, %weight{r}")
            value = _widen(body, dtype, _narrow(body, dtype, product))
        total = _merge(body, dtype, op, kind, total, value) if total else value
    total = _narrow(body, dtype, total)
    for t in range(targets):
        address = body.emit(f"getelementptr {memory}, ptr %target{t}, i64 %i")
        body.do(f"store {memory} {total}, ptr {address}, align {_size(memory)}, {_INDEPENDENT}")
    parameter = "ptr %weights, " if weighted else ""
    return _LOOP.format(parameter=parameter, head="\n".join(head), body="\n".join(body.lines))


def _pointers(name: str, count: int) -> list[str]:
    lines = []
    for i in range(count):
        lines += [
            f"  %{name}{i}.at = getelementptr ptr, ptr %{name}s, i64 {i}",
            f"  %{name}{i} = load ptr, ptr %{name}{i}.at",
        ]
    return lines


def _weights(kind: str, count: int) -> list[str]:
    lines = []
    for r in range(count):
        name = f"%weight{r}" if kind == "double" else f"%wide{r}"
        lines += [
            f"  %weight{r}.at = getelementptr double, ptr %weights, i64 {r}",
            f"  {name} = load double, ptr %weight{r}.at",
        ]
        if kind != "double":
            lines.append(f"  %weight{r} = fptrunc double %wide{r} to {kind}")
    return lines


def _merge(body: _Body, dtype: str, op: str, kind: str, x: str, y: str) -> str:
    if dtype == "bool":
        return body.emit(f"{'and' if op == 'min' else 'or'} i8 {x}, {y}")
    floating = kind in ("float", "double")
    if op == "sum":
        return body.emit(f"{'fadd' if floating else 'add'} {kind} {x}, {y}")
    if not floating:
        sign = "u" if dtype.startswith("u") else "s"
        better = body.emit(f"icmp {sign}{'gt' if op == 'max' else 'lt'} {kind} {x}, {y}")
    else:
        wins = body.emit(f"fcmp {'ogt' if op == 'max' else 'olt'} {kind} {x}, {y}")
        better = body.emit(f"or i1 {wins}, {body.emit(f'fcmp uno {kind} {x}, {x}')}")
    return body.emit(f"select i1 {better}, {kind} {x}, {kind} {y}")


def _widen(body: _Body, dtype: str, x: str) -> str:
    if dtype == "float16":
        return body.emit(f"fpext half {x} to float")
    if dtype == "bfloat16":
        bits = body.emit(f"shl i32 {body.emit(f'zext i16 {x} to i32')}, 16")
        return body.emit(f"bitcast i32 {bits} to float")
    return x


def _narrow(body: _Body, dtype: str, x: str) -> str:
    """Rounded to nearest, ties to even."""
    if dtype == "float16":
        return body.emit(f"fptrunc float {x} to half")
    if dtype != "bfloat16":
        return x
    bits = body.emit(f"bitcast float {x} to i32")
    top = body.emit(f"lshr i32 {bits}, 16")
    half = body.emit(f"add i32 {body.emit(f'and i32 {top}, 1')}, 32767")
    rounded = body.emit(f"lshr i32 {body.emit(f'add i32 {bits}, {half}')}, 16")
    quiet = body.emit(f"or i32 {top}, 64")
    result = body.emit(f"select i1 {body.emit(f'fcmp uno float {x}, {x}')}, i32 {quiet}, i32 {rounded}")
    return body.emit(f"trunc i32 {result} to i16")


def _size(memory: str) -> int:
    return {"half": 2, "float": 4, "double": 8}.get(memory) or int(memory[1:]) // 8


_INDEPENDENT = "!llvm.access.group !0"

_LOOP = """
define void @combine(ptr %sources, ptr %targets, {parameter}i64 %start, i64 %stop) nounwind {{
entry:
{head}
  %some = icmp slt i64 %start, %stop
  br i1 %some, label %each, label %end
each:
  %i = phi i64 [%start, %entry], [%i.next, %each]
{body}
  %i.next = add nsw i64 %i, 1
  %more = icmp slt i64 %i.next, %stop
  br i1 %more, label %each, label %end, !llvm.loop !1
end:
  ret void
}}

!0 = distinct !{{}}
!1 = distinct !{{!1, !2}}
!2 = !{{!"llvm.loop.parallel_accesses", !0}}
"""
