"""The executor: runs a list of native calls by one call of machine code, without the GIL.

A program is an array of instructions, each of four words: the kernel's address, that of its block of arguments, the
extent of its work, and its grain (see `disttensor.kernels.native`). The executor walks it, once or several times in a
row. It computes without denormals, and leaves the floating-point state of the calling thread as it was. An instruction
may give up, so that Python does its work instead; then the executor returns, and is called again for what comes behind.
Such an instruction may also have the next ones left out, which would do nothing: nobody is woken to share them.

Threads live here and nowhere else. Helpers are parked in machine code. An instruction that may be split is opened to
them: whoever comes takes parts until none is left, half of an equal share at a time, but at least so many grains as pay
on this machine (`disttensor.kernels.tuning`). The calling thread takes parts, too, and in the end waits only for
helpers that are at work on one; a helper that got no core in time is not waited for. If the wait took longer than the
work all the same, someone else uses that core: then the next splits are left out, more of them each time it happens
again. Helpers look for new work for some microseconds before they sleep. When two threads run programs at once, the
helpers belong to the first, the other runs alone.

References
----------
Polychronopoulos & Kuck, "Guided self-scheduling", 1987. Drepper, "Futexes are tricky", 2011.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
import threading
from typing import Any

import numpy as np

from disttensor.kernels import machine

_RUN = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, *[ctypes.c_int64] * 4, ctypes.c_void_p)
_HELP = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_SYSTEM_CALL_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine()) if sys.platform == "linux" else None

HAS_THREADS = _SYSTEM_CALL_FUTEX is not None
"""Whether there are helpers on this system at all."""

_POOL_BYTES = 384
_SKIP_AND_BACKOFF = slice(260, 268)  # bytes of the pool
_MOST_SKIPPED = 1023

RESUMABLE = -1
"""Instead of a grain: the instruction may give up, and says so by its first argument, which is then above 0. Below 0 it
says how many instructions behind it are to be left out, negated."""


def execute(program: int, count: int, times: int = 1, threads: int = 1, least: int = 1) -> int:
    """Run a program, perhaps several times in a row.

    Parameters
    ----------
    program : int
        The address of `count` instructions.
    count : int
    times : int, default 1
    threads : int, default 1
        How many may share an instruction that has a grain.
    least : int, default 1
        Grains that a thread takes at once, at least.

    Returns
    -------
    int
        How many instructions were done, or left out: `count` · `times`, unless one of `RESUMABLE` grain gave up.
    """
    if threads > 1 and HAS_THREADS:
        done: int = _functions()[0](program, count, times, threads, least, _pool().address_for(threads))
    else:
        done = _functions()[0](program, count, times, 1, 1, None)
    return done


def helpers_are_late() -> bool:
    """Whether hundreds of splits are left out at a time, because helpers were waited for in vain again and again."""
    return bool(_pool().skip_and_backoff[1] > _MOST_SKIPPED // 4)


def forget_waits() -> None:
    """Split again what is left out."""
    _pool().skip_and_backoff[:] = 0


class _Pool:
    """The memory that the executor shares with its helpers, and their threads."""

    def __init__(self) -> None:
        self._memory = np.zeros(_POOL_BYTES + 64, np.uint8)
        self._address = -(-self._memory.ctypes.data // 64) * 64
        self.skip_and_backoff = self._memory[self._address - self._memory.ctypes.data :][_SKIP_AND_BACKOFF].view(
            np.int32
        )
        self._helpers = 0
        self._lock = threading.Lock()

    def address_for(self, threads: int) -> int:
        """The address of the pool, which has one helper less than `threads` at least."""
        if self._helpers < threads - 1:
            with self._lock:
                while self._helpers < threads - 1:
                    name = f"disttensor-helper-{self._helpers}"
                    threading.Thread(target=_functions()[1], args=(self._address,), name=name, daemon=True).start()
                    self._helpers += 1
        return self._address


@functools.cache
def _pool() -> _Pool:
    return _Pool()


@functools.cache
def _functions() -> tuple[Any, Any]:
    """The executor and the helpers' loop."""
    addresses = machine.load(_source())
    return _RUN(addresses["run"]), _HELP(addresses["help"])


if hasattr(os, "register_at_fork"):
    # A child has none of its parent's threads, and their memory may say that they are at work.
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _source() -> str:
    text = _EXECUTOR + (_THREADS if HAS_THREADS else _NO_THREADS)
    for name, lines in (
        ("LOAD_CALL", _LOAD_CALL),
        ("LOAD_SPLIT", _LOAD_SPLIT),
        ("FUTEX", str(_SYSTEM_CALL_FUTEX)),
        ("MOST_SKIPPED", str(_MOST_SKIPPED)),
    ):
        text = text.replace(name, lines)
    return processor_source() + text


def processor_source() -> str:
    """LLVM IR of what differs between processors: the internal functions `flush`, `restore` and `pause`."""
    return _PROCESSORS.get(platform.machine(), _ANY_PROCESSOR)


# How processors switch denormals off, and say that a loop only waits. `flush` gives what `restore` takes.
_PROCESSORS = {
    "x86_64": """
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
declare void @llvm.x86.sse2.pause()
define internal i64 @flush() {
  %p = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %p)
  %old = load i32, ptr %p
  %new = or i32 %old, 32832 ; flush to zero, denormals are zero
  store i32 %new, ptr %p
  call void @llvm.x86.sse.ldmxcsr(ptr %p)
  %result = zext i32 %old to i64
  ret i64 %result
}
define internal void @restore(i64 %value) {
  %p = alloca i32
  %old = trunc i64 %value to i32
  store i32 %old, ptr %p
  call void @llvm.x86.sse.ldmxcsr(ptr %p)
  ret void
}
define internal void @pause() {
  call void @llvm.x86.sse2.pause()
  ret void
}
""",
    "aarch64": """
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
declare void @llvm.aarch64.hint(i32)
define internal i64 @flush() {
  %old = call i64 @llvm.aarch64.get.fpcr()
  %new = or i64 %old, 16777216 ; FZ
  call void @llvm.aarch64.set.fpcr(i64 %new)
  ret i64 %old
}
define internal void @restore(i64 %value) {
  call void @llvm.aarch64.set.fpcr(i64 %value)
  ret void
}
define internal void @pause() {
  call void @llvm.aarch64.hint(i32 1)
  ret void
}
""",
}

_ANY_PROCESSOR = """
define internal i64 @flush() {
  ret i64 0
}
define internal void @restore(i64 %value) {
  ret void
}
define internal void @pause() {
  ret void
}
"""

# The fields of the instruction %at.
_LOAD_CALL = """%kernel = load ptr, ptr %at
  %arguments.at = getelementptr %instruction, ptr %at, i64 0, i32 1
  %arguments = load ptr, ptr %arguments.at"""
_LOAD_SPLIT = """%extent.at = getelementptr %instruction, ptr %at, i64 0, i32 2
  %grain.at = getelementptr %instruction, ptr %at, i64 0, i32 3
  %extent = load i64, ptr %extent.at
  %grain = load i64, ptr %grain.at"""

_EXECUTOR = """
%instruction = type { ptr, ptr, i64, i64 } ; kernel, arguments, extent, grain

define i64 @run(ptr %program, i64 %count, i64 %times, i64 %threads, i64 %least, ptr %pool) {
entry:
  %two = mul i64 %least, 2
  %state = call i64 @flush()
  %several = icmp sgt i64 %threads, 1
  %total = mul i64 %count, %times
  %some = icmp sgt i64 %total, 0
  br i1 %some, label %each, label %end
each:
  %i = phi i64 [0, %entry], [%following, %done]
  %ran.before = phi i64 [0, %entry], [%ran.now, %done]
  %at = getelementptr %instruction, ptr %program, i64 %i
  LOAD_SPLIT
  %twice = mul i64 %grain, %two
  %splits = icmp sgt i64 %grain, 0
  %long = icmp sge i64 %extent, %twice
  %may = and i1 %splits, %long
  %split = and i1 %may, %several
  br i1 %split, label %share, label %alone
share:
  %shared = call i1 @share(ptr %at, i64 %threads, i64 %least, ptr %pool)
  br i1 %shared, label %done, label %alone
alone:
  %work = icmp sgt i64 %extent, 0
  br i1 %work, label %call, label %done
call:
  LOAD_CALL
  call void %kernel(ptr %arguments, i64 0, i64 %extent)
  %resumable = icmp slt i64 %grain, 0
  br i1 %resumable, label %ask, label %done
ask:
  %status = load i64, ptr %arguments
  %gave.up = icmp sgt i64 %status, 0
  br i1 %gave.up, label %end, label %skip
skip:
  %more.than.one = sub i64 1, %status
  br label %done
done:
  %step = phi i64 [1, %share], [1, %alone], [1, %call], [%more.than.one, %skip]
  %next = add i64 %i, %step
  %ran.now = add i64 %ran.before, %step
  %within = icmp slt i64 %next, %count
  %following = select i1 %within, i64 %next, i64 0
  %more = icmp slt i64 %ran.now, %total
  br i1 %more, label %each, label %end
end:
  %ran = phi i64 [0, %entry], [%ran.before, %ask], [%ran.now, %done]
  call void @restore(i64 %state)
  ret i64 %ran
}
"""

_NO_THREADS = """
define internal i1 @share(ptr %at, i64 %threads, i64 %least, ptr %pool) {
  ret i1 false
}
define void @help(ptr %pool) {
  ret void
}
"""

# The pool, by lines of the cache:
#   wake, sleepers                                  (0)   helpers sleep on `wake`, which counts the jobs
#   state                                           (64)  bit 30: open to helpers; bit 29: the caller sleeps; how many
#                                                         helpers are at work
#   next                                            (128) the first unit (of `grain`) that nobody has taken
#   instruction, units, share, limit, floating-point state, least  (192) the job
#   owner, skip, backoff                            (256) whether someone has the helpers; how many splits to leave out
_THREADS = """
%pool = type { i32, i32, [56 x i8], i32, [60 x i8], i64, [56 x i8], ptr, i64, i64, i32, [4 x i8], i64, i64, [16 x i8],
               i32, i32, i32 }

declare i64 @syscall(i64, ...)
declare i64 @llvm.readcyclecounter()

; Open an instruction to the helpers and work on it; false if it is not worth it, or the helpers are taken.
define internal i1 @share(ptr %at, i64 %threads, i64 %least, ptr %pool) {
entry:
  %owner = getelementptr %pool, ptr %pool, i64 0, i32 15
  %pair = cmpxchg ptr %owner, i32 0, i32 1 acquire monotonic
  %mine = extractvalue { i32, i1 } %pair, 1
  br i1 %mine, label %have, label %refuse
refuse:
  ret i1 false
have:
  %skip.at = getelementptr %pool, ptr %pool, i64 0, i32 16
  %skip = load i32, ptr %skip.at
  %skips = icmp sgt i32 %skip, 0
  br i1 %skips, label %leave, label %publish
leave:
  %fewer = sub i32 %skip, 1
  store i32 %fewer, ptr %skip.at
  store atomic i32 0, ptr %owner release, align 4
  ret i1 false

publish:
  LOAD_SPLIT
  %up = add i64 %extent, %grain
  %up1 = sub i64 %up, 1
  %units = sdiv i64 %up1, %grain
  %share = mul i64 %threads, 2
  %helpers64 = sub i64 %threads, 1
  %helpers = trunc i64 %helpers64 to i32
  %job.at = getelementptr %pool, ptr %pool, i64 0, i32 7
  %units.at = getelementptr %pool, ptr %pool, i64 0, i32 8
  %share.at = getelementptr %pool, ptr %pool, i64 0, i32 9
  %limit.at = getelementptr %pool, ptr %pool, i64 0, i32 10
  %float.at = getelementptr %pool, ptr %pool, i64 0, i32 12
  %least.at = getelementptr %pool, ptr %pool, i64 0, i32 13
  %next.at = getelementptr %pool, ptr %pool, i64 0, i32 5
  %state.at = getelementptr %pool, ptr %pool, i64 0, i32 3
  %wake.at = getelementptr %pool, ptr %pool, i64 0, i32 0
  %sleepers.at = getelementptr %pool, ptr %pool, i64 0, i32 1
  store ptr %at, ptr %job.at
  store i64 %units, ptr %units.at
  store i64 %share, ptr %share.at
  store i32 %helpers, ptr %limit.at
  store i64 %least, ptr %least.at
  %float = call i64 @flush()
  store i64 %float, ptr %float.at
  store atomic i64 0, ptr %next.at monotonic, align 8
  store atomic i32 1073741824, ptr %state.at release, align 4
  %ignored = atomicrmw add ptr %wake.at, i32 1 seq_cst
  %sleepers = load atomic i32, ptr %sleepers.at seq_cst, align 4
  %asleep = icmp sgt i32 %sleepers, 0
  br i1 %asleep, label %call, label %begin
call:
  %woken = call i64 (i64, ...) @syscall(i64 FUTEX, ptr %wake.at, i64 129, i64 %helpers64)
  br label %begin

begin:
  %start = call i64 @llvm.readcyclecounter()
  call void @work(ptr %pool)
  %worked = call i64 @llvm.readcyclecounter()
  %before = atomicrmw and ptr %state.at, i32 -1073741825 acq_rel
  br label %wait
wait:
  %spins = phi i32 [0, %begin], [%spins.next, %spin]
  %state = load atomic i32, ptr %state.at acquire, align 4
  %alone = icmp eq i32 %state, 0
  br i1 %alone, label %finish, label %patient
patient:
  %spins.next = add i32 %spins, 1
  %long = icmp sgt i32 %spins, 2000
  br i1 %long, label %sleep, label %spin
spin:
  call void @pause()
  br label %wait
sleep:
  %said = atomicrmw or ptr %state.at, i32 536870912 acq_rel
  br label %sleeping
sleeping:
  %now = load atomic i32, ptr %state.at acquire, align 4
  %still = icmp ne i32 %now, 536870912
  br i1 %still, label %rest, label %awake
rest:
  %now64 = zext i32 %now to i64
  %slept = call i64 (i64, ...) @syscall(i64 FUTEX, ptr %state.at, i64 128, i64 %now64, ptr null)
  br label %sleeping
awake:
  store atomic i32 0, ptr %state.at monotonic, align 4
  br label %finish

finish:
  %end = call i64 @llvm.readcyclecounter()
  %working = sub i64 %worked, %start
  %waiting = sub i64 %end, %worked
  %slow = icmp sgt i64 %waiting, %working
  %backoff.at = getelementptr %pool, ptr %pool, i64 0, i32 17
  %backoff = load i32, ptr %backoff.at
  %double = mul i32 %backoff, 2
  %more = add i32 %double, 1
  %capped = call i32 @llvm.smin.i32(i32 %more, i32 MOST_SKIPPED)
  %half = lshr i32 %backoff, 1
  %backoff.new = select i1 %slow, i32 %capped, i32 %half
  %skip.new = select i1 %slow, i32 %capped, i32 0
  store i32 %backoff.new, ptr %backoff.at
  store i32 %skip.new, ptr %skip.at
  store atomic i32 0, ptr %owner release, align 4
  ret i1 true
}

; Take parts of the job and do them, until none is left.
define internal void @work(ptr %pool) {
entry:
  %next.at = getelementptr %pool, ptr %pool, i64 0, i32 5
  %job.at = getelementptr %pool, ptr %pool, i64 0, i32 7
  %units.at = getelementptr %pool, ptr %pool, i64 0, i32 8
  %share.at = getelementptr %pool, ptr %pool, i64 0, i32 9
  %least.at = getelementptr %pool, ptr %pool, i64 0, i32 13
  %at = load ptr, ptr %job.at
  %units = load i64, ptr %units.at
  %share = load i64, ptr %share.at
  %least = load i64, ptr %least.at
  LOAD_CALL
  LOAD_SPLIT
  br label %take
take:
  %first = load atomic i64, ptr %next.at monotonic, align 8
  %left = sub i64 %units, %first
  %any = icmp sgt i64 %left, 0
  br i1 %any, label %claim, label %end
claim:
  %fair = udiv i64 %left, %share
  %size = call i64 @llvm.smax.i64(i64 %fair, i64 %least)
  %last = add i64 %first, %size
  %pair = cmpxchg ptr %next.at, i64 %first, i64 %last monotonic monotonic
  %mine = extractvalue { i64, i1 } %pair, 1
  br i1 %mine, label %do, label %take
do:
  %start = mul i64 %first, %grain
  %to = mul i64 %last, %grain
  %stop = call i64 @llvm.smin.i64(i64 %to, i64 %extent)
  call void %kernel(ptr %arguments, i64 %start, i64 %stop)
  br label %take
end:
  ret void
}
declare i32 @llvm.smin.i32(i32, i32)
declare i64 @llvm.smin.i64(i64, i64)
declare i64 @llvm.smax.i64(i64, i64)

; The life of a helper.
define void @help(ptr %pool) {
entry:
  %wake.at = getelementptr %pool, ptr %pool, i64 0, i32 0
  %sleepers.at = getelementptr %pool, ptr %pool, i64 0, i32 1
  %state.at = getelementptr %pool, ptr %pool, i64 0, i32 3
  %limit.at = getelementptr %pool, ptr %pool, i64 0, i32 10
  %float.at = getelementptr %pool, ptr %pool, i64 0, i32 12
  br label %look
look:
  %seen = load atomic i32, ptr %wake.at acquire, align 4
  br label %try
try:
  %state = load atomic i32, ptr %state.at acquire, align 4
  %open = and i32 %state, 1073741824
  %is.open = icmp ne i32 %open, 0
  %inside = and i32 %state, 536870911
  %limit = load atomic i32, ptr %limit.at monotonic, align 4
  %room = icmp slt i32 %inside, %limit
  %may = and i1 %is.open, %room
  br i1 %may, label %join, label %idle
join:
  %joined = add i32 %state, 1
  %pair = cmpxchg ptr %state.at, i32 %state, i32 %joined acquire monotonic
  %in = extractvalue { i32, i1 } %pair, 1
  br i1 %in, label %help, label %try
help:
  %float = load i64, ptr %float.at
  call void @restore(i64 %float)
  call void @work(ptr %pool)
  %was = atomicrmw sub ptr %state.at, i32 1 acq_rel
  %last = icmp eq i32 %was, 536870913 ; the only one at work, and the caller sleeps
  br i1 %last, label %tell, label %idle
tell:
  %told = call i64 (i64, ...) @syscall(i64 FUTEX, ptr %state.at, i64 129, i64 1)
  br label %idle

idle:
  %spins = phi i32 [0, %try], [0, %help], [0, %tell], [%spins.next, %spin]
  %wake = load atomic i32, ptr %wake.at acquire, align 4
  %new = icmp ne i32 %wake, %seen
  br i1 %new, label %look, label %patient
patient:
  %spins.next = add i32 %spins, 1
  %long = icmp sgt i32 %spins, 3000
  br i1 %long, label %sleep, label %spin
spin:
  call void @pause()
  br label %idle
sleep:
  %more = atomicrmw add ptr %sleepers.at, i32 1 seq_cst
  %seen64 = zext i32 %seen to i64
  %slept = call i64 (i64, ...) @syscall(i64 FUTEX, ptr %wake.at, i64 128, i64 %seen64, ptr null)
  %fewer = atomicrmw sub ptr %sleepers.at, i32 1 seq_cst
  br label %look
}
"""
