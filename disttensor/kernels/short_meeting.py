"""Machine code for an all-reduce of arrays so short that every rank reads all of all; how they wait: `waiting`."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping

import numpy as np

from disttensor.kernels import machine, methods, waiting
from disttensor.kernels.waiting import NAPS

# Words of the ledger of short arrays: exchanges so far, nanoseconds that this rank waited, how long it looks, ranks,
# this rank, and tables of addresses: of all counters, and of all places for arrays, one set after the other.
NUMBER, WAITED, LOOKS, RANKS, ME, COUNTERS, PLACES = range(7)
WORDS = PLACES + 1
HEAD = 64
"""Bytes before each place, for what its rank calls."""

# Words of a call: the ledger, the code, the bytes of a number, the function that combines (see `shared_memory`), the
# bytes of the array, where it is, and where the result goes.
CALL_WORDS, IN, OUT = 7, 5, 6

_CALL = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64)
_COMPLETE = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * 2)


@functools.cache
def exchange() -> tuple[Callable[..., int], Callable[..., int]]:
    """An all-reduce of arrays that are so short that every rank reads all: two functions.

    ``exchange(call)`` puts the array where others see it, waits for theirs, and combines them where the result goes,
    perhaps in the array. It returns 1; 0 if it gave up to wait; or 2 if a rank has come with another code or length.
    ``complete(call, naps)`` goes on where it gave up, as often as it takes. There are two sets of places by turns: who
    enters an exchange is done with all arrays of the one before.
    """
    return _CALL(_addresses()["exchange"]), _COMPLETE(_addresses()["complete"])


def exchange_in_place(call: np.ndarray) -> Callable[[np.ndarray], int]:
    """``exchange`` of a contiguous array of numpy that gets the result, too, as a method of the words of a call.

    To convert arguments for a function of C takes longer than to sum a short array.
    """
    return methods.bind(_addresses()["exchange_in_place"], call)


@functools.cache
def _addresses() -> Mapping[str, int]:
    return machine.load(waiting.source() + methods.source() + _SHORT)


_SHORT = f"""
%short = type {{ i64, i64, i64, i64, i64, ptr, ptr }} ; the words of its ledger

declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

define internal ptr @places(ptr %ledger) nounwind {{
  %number = load i64, ptr %ledger
  %ranks.at = getelementptr %short, ptr %ledger, i64 0, i32 {RANKS}
  %ranks = load i64, ptr %ranks.at
  %table.at = getelementptr %short, ptr %ledger, i64 0, i32 {PLACES}
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
  %in.at = getelementptr i64, ptr %call, i64 {IN}
  %code = load i64, ptr %code.from
  %bytes = load i64, ptr %bytes.from
  %in = load ptr, ptr %in.at
  %before = load i64, ptr %ledger
  %number = add i64 %before, 1
  store i64 %number, ptr %ledger
  %me.at = getelementptr %short, ptr %ledger, i64 0, i32 {ME}
  %me = load i64, ptr %me.at
  %places = call ptr @places(ptr %ledger)
  %place.at = getelementptr ptr, ptr %places, i64 %me
  %place = load ptr, ptr %place.at
  %code.at = getelementptr i8, ptr %place, i64 -{HEAD}
  %bytes.at = getelementptr i64, ptr %code.at, i64 1
  store i64 %code, ptr %code.at
  store i64 %bytes, ptr %bytes.at
  call void @llvm.memcpy.p0.p0.i64(ptr %place, ptr %in, i64 %bytes, i1 false)
  %counters.at = getelementptr %short, ptr %ledger, i64 0, i32 {COUNTERS}
  %counters = load ptr, ptr %counters.at
  %counter.at = getelementptr ptr, ptr %counters, i64 %me
  %counter = load ptr, ptr %counter.at
  store atomic i64 %number, ptr %counter release, align 8
  %result = call i32 @complete(ptr %call, i64 {NAPS})
  ret i32 %result
}}

define ptr @exchange_in_place(ptr %words, ptr %array) nounwind {{
  %call = call ptr @data(ptr %words)
  %data = call ptr @data(ptr %array)
  %in.at = getelementptr i64, ptr %call, i64 {IN}
  %out.at = getelementptr i64, ptr %call, i64 {OUT}
  store ptr %data, ptr %in.at
  store ptr %data, ptr %out.at
  %thread = call ptr @PyEval_SaveThread()
  %status = call i32 @exchange(ptr %call)
  call void @PyEval_RestoreThread(ptr %thread)
  %wide = sext i32 %status to i64
  %result = call ptr @PyLong_FromLong(i64 %wide)
  ret ptr %result
}}

define i32 @complete(ptr %call, i64 %naps) nounwind {{
entry:
  %ledger = load ptr, ptr %call
  %code.from = getelementptr i64, ptr %call, i64 1
  %bytes.from = getelementptr i64, ptr %call, i64 4
  %code = load i64, ptr %code.from
  %bytes = load i64, ptr %bytes.from
  %number = load i64, ptr %ledger
  %waited.at = getelementptr %short, ptr %ledger, i64 0, i32 {WAITED}
  %looks.at = getelementptr %short, ptr %ledger, i64 0, i32 {LOOKS}
  %looks = load i64, ptr %looks.at
  %ranks.at = getelementptr %short, ptr %ledger, i64 0, i32 {RANKS}
  %ranks = load i64, ptr %ranks.at
  %counters.at = getelementptr %short, ptr %ledger, i64 0, i32 {COUNTERS}
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
  %code.at = getelementptr i8, ptr %place, i64 -{HEAD}
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
  %targets = getelementptr i64, ptr %call, i64 {OUT}
  call void %combine(ptr %places, ptr %targets, i64 0, i64 %count)
  ret i32 1
}}
"""
