"""Machine code for ranks that share memory: combining one another's arrays (who combines what: `meeting`).

It is written as LLVM IR (see `machine`). Elements are combined in the order of ranks: the result depends neither on who
does it nor on timing.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from disttensor.kernels import machine

_COMBINE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)

_WEIGHTED = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


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
    return _COMBINE(combine_address(dtype, op, sources, targets))


def combine_address(dtype: str, op: str, sources: int, targets: int) -> int:
    """Where the function of `combine` is, for machine code."""
    return machine.load(_combine_source(dtype, op, sources, targets))["combine"]


@functools.cache
def weighted_sum(dtype: str, sources: int, targets: int) -> Callable[[Any, Any, Any, int, int], None]:
    """``weighted_sum(sources, targets, weights, start, stop)``: ``targets[t][i] = Σᵣ weights[r]·sources[r][i]``.

    As `combine`. The weights, doubles, are rounded to the dtype (to float32 for those of two bytes), and so is each
    product before it is added.
    """
    return _WEIGHTED(machine.load(_combine_source(dtype, "sum", sources, targets, weighted=True))["combine"])


@functools.cache
def weighted_part(dtype: str, sources: int, targets: int) -> int:
    """The address of a native kernel that does `weighted_sum`, also of no source, for a part of the arrays.

    Its arguments are the address of a word that is 0 if nothing is to be done, pointers to the addresses of sources and
    of targets and to the weights, and the element that is number 0 of its extent.
    """
    return machine.load(_combine_source(dtype, "sum", sources, targets, weighted=True) + _PART)["part"]


def combines(dtype: str) -> bool:
    """Whether `combine` can be compiled for a dtype on this processor."""
    if dtype == "float16":
        return machine.has("f16c") or machine.has("fullfp16")
    return dtype in _KINDS


# Of an element in memory and in registers.
_KINDS = {
    "bool": ("i8", "i8"), "int8": ("i8", "i8"), "int16": ("i16", "i16"), "int32": ("i32", "i32"),
    "int64": ("i64", "i64"), "uint8": ("i8", "i8"), "uint16": ("i16", "i16"), "uint32": ("i32", "i32"),
    "uint64": ("i64", "i64"), "float16": ("half", "float"), "bfloat16": ("i16", "float"), "float32": ("float", "float"),
    "float64": ("double", "double"),
}  # fmt: skip


class _Body:
    """The lines of a loop's body, with names for their results."""

    def __init__(self, name: str = "t") -> None:
        self.lines: list[str] = []
        self._name = name

    def emit(self, text: str) -> str:
        self.lines.append(f"  %{self._name}{len(self.lines)} = {text}")
        return f"%{self._name}{len(self.lines) - 1}"

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
    total = _narrow(body, dtype, total or "0.0")
    size = _size(memory)
    for t in range(targets):
        address = body.emit(f"getelementptr {memory}, ptr %target{t}, i64 %i")
        body.do(f"store {memory} {total}, ptr {address}, align {size}, {_INDEPENDENT}")
    values = [f"ptr %source{r}" for r in range(sources)] + [f"ptr %target{t}" for t in range(targets)]
    if weighted:
        values += [f"{kind} %weight{r}" for r in range(sources)]
    parameters = {"values": ", ".join(values), "parameter": "ptr %weights, " if weighted else ""}
    text = {**parameters, "head": "\n".join(head), "body": "\n".join(body.lines)}
    # What has one target is short, or comes in pieces.
    if targets == 1 or not 0 < sources <= _MOST_AHEAD:
        return _STRETCH.format(name="rest", loop="!2", **text) + _PLAIN.format(**text) + _LOOPS
    sizes = {"size": _BLOCK // size, "least": max(_FROM // (sources * size), _BLOCK), "most": _TO // (sources * size)}
    stretches = [_STRETCH.format(name=name, loop=loop, **text) for name, loop in (("block", "!1"), ("rest", "!2"))]
    return "".join(stretches) + _AHEAD_OF_BLOCKS.format(ahead=_fetching(memory, sources), **sizes, **text) + _LOOPS


def _fetching(memory: str, sources: int) -> str:
    """Ask for the lines of the block of each source that comes so much later than the one from `first` on."""
    body = _Body("a")
    for r in range(sources):
        block = body.emit(f"getelementptr {memory}, ptr %source{r}, i64 %first")
        for skip in range(_AHEAD, _AHEAD + _BLOCK, _LINE):
            line = body.emit(f"getelementptr i8, ptr {block}, i64 {skip}")
            body.do(f"call void @llvm.prefetch.p0(ptr {line}, i32 0, i32 3, i32 1)")
    return "\n".join(body.lines)


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


# A call that reads so many bytes fetches lines ahead. Fewer are in the cache, at pages whose addresses are at hand, and
# more come from memory as fast as that can. In between the processor waits for each page's address, since by itself it
# does not look beyond a page.
_FROM, _TO = 8 << 20, 24 << 20
_MOST_AHEAD = 8  # sources
_AHEAD = 3072  # bytes
_LINE, _BLOCK = 64, 256  # bytes

_INDEPENDENT = "!llvm.access.group !0"

_STRETCH = """
define internal void @{name}({values}, i64 %start, i64 %count) alwaysinline nounwind {{
entry:
  %some = icmp slt i64 0, %count
  br i1 %some, label %each, label %end
each:
  %done = phi i64 [0, %entry], [%done.next, %each]
  %i = add nsw i64 %start, %done
{body}
  %done.next = add nsw i64 %done, 1
  %more = icmp slt i64 %done.next, %count
  br i1 %more, label %each, label %end, !llvm.loop {loop}
end:
  ret void
}}
"""

_PLAIN = """
define void @combine(ptr %sources, ptr %targets, {parameter}i64 %start, i64 %stop) nounwind {{
{head}
  %count = sub i64 %stop, %start
  call void @rest({values}, i64 %start, i64 %count)
  ret void
}}
"""

_AHEAD_OF_BLOCKS = """
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)

define void @combine(ptr %sources, ptr %targets, {parameter}i64 %start, i64 %stop) nounwind {{
entry:
{head}
  %count = sub i64 %stop, %start
  %are.many = icmp sge i64 %count, {least}
  %are.few = icmp sle i64 %count, {most}
  %pays = and i1 %are.many, %are.few
  br i1 %pays, label %ahead, label %behind
ahead:
  %first = phi i64 [%start, %entry], [%last, %ahead]
{ahead}
  call void @block({values}, i64 %first, i64 {size})
  %last = add nsw i64 %first, {size}
  %next.last = add nsw i64 %last, {size}
  %fits = icmp sle i64 %next.last, %stop
  br i1 %fits, label %ahead, label %behind
behind:
  %from = phi i64 [%start, %entry], [%last, %ahead]
  %left = sub i64 %stop, %from
  call void @rest({values}, i64 %from, i64 %left)
  ret void
}}
"""

_LOOPS = """
!0 = distinct !{}
!1 = distinct !{!1, !3, !4}
!2 = distinct !{!2, !3}
!3 = !{!"llvm.loop.parallel_accesses", !0}
!4 = !{!"llvm.loop.unroll.disable"}
"""

_PART = """
define void @part(ptr %arguments, i64 %start, i64 %stop) nounwind {
  %go.at = load ptr, ptr %arguments
  %go = load i64, ptr %go.at
  %none = icmp eq i64 %go, 0
  br i1 %none, label %end, label %add
add:
  %arrays.at = getelementptr i64, ptr %arguments, i64 1
  %targets.at = getelementptr i64, ptr %arguments, i64 2
  %weights.at = getelementptr i64, ptr %arguments, i64 3
  %first.at = getelementptr i64, ptr %arguments, i64 4
  %arrays = load ptr, ptr %arrays.at
  %targets = load ptr, ptr %targets.at
  %weights = load ptr, ptr %weights.at
  %first = load i64, ptr %first.at
  %from = add i64 %first, %start
  %to = add i64 %first, %stop
  call void @combine(ptr %arrays, ptr %targets, ptr %weights, i64 %from, i64 %to)
  br label %end
end:
  ret void
}
"""
