"""Native calls: arguments, parts for threads, and the three ways to write a kernel."""

from __future__ import annotations

import ctypes
import gc

import numpy as np
import pytest

from disttensor import config
from disttensor.kernels import machine
from disttensor.kernels._jit import kernel, operand
from disttensor.kernels.native import NativeCall, NativeSequence

# out[start:stop] += value; counts[start // grain] = stop - start
ADD = """define void @add(ptr %arguments, i64 %start, i64 %stop) {
  %w1 = getelementptr i64, ptr %arguments, i64 1
  %w2 = getelementptr i64, ptr %arguments, i64 2
  %w3 = getelementptr i64, ptr %arguments, i64 3
  %out = load ptr, ptr %arguments
  %counts = load ptr, ptr %w1
  %grain = load i64, ptr %w2
  %value = load double, ptr %w3
  %part = sdiv i64 %start, %grain
  %size = sub i64 %stop, %start
  %count = getelementptr i64, ptr %counts, i64 %part
  store i64 %size, ptr %count
  br label %each
each:
  %i = phi i64 [%start, %0], [%next, %each]
  %p = getelementptr double, ptr %out, i64 %i
  %x = load double, ptr %p
  %y = fadd double %x, %value
  store double %y, ptr %p
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %stop
  br i1 %more, label %each, label %end
end:
  ret void
}"""


@kernel()
def scale(out: np.ndarray, x: np.ndarray, factor: float, up: bool, start: int, stop: int) -> None:
    for i in range(start, stop):
        out[i] = x[i, 0] * factor if up else x[i, 0]


@kernel()
def total(out: np.ndarray, x: np.ndarray) -> None:
    out[0] = x.sum()


def add(extent: int, grain: int, value: float = 1.5) -> tuple[NativeCall, np.ndarray, np.ndarray]:
    out, counts = np.zeros(max(extent, 1)), np.zeros(64, np.int64)
    return NativeCall(machine.load(ADD)["add"], [out, counts, grain or 1, value], extent, grain), out, counts


def test_words_are_addresses_integers_and_doubles() -> None:
    call, out, counts = add(5, 0)
    call()
    call()
    assert out.tolist() == [3.0] * 5
    assert counts[0] == 5


@pytest.mark.parametrize("extent", [0, 1, 9, 10, 11, 20, 29, 35, 100])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_parts_start_at_multiples_of_the_grain_and_cover_everything(
    extent: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "_threads", threads)
    call, out, counts = add(extent, 10)
    call()
    assert out[:extent].tolist() == [1.5] * extent
    parts = counts[counts > 0]
    assert parts.sum() == extent
    assert threads > 1 or len(parts) <= 1
    starts = np.flatnonzero(counts) * 10
    assert starts.tolist() == [0, *np.cumsum(parts)[:-1]][: len(starts)]
    assert all(size >= 10 for size in parts[:-1])


def test_arrays_live_as_long_as_the_call() -> None:
    x = np.arange(4.0)
    call = NativeCall(machine.load(ADD)["add"], [x, np.zeros(1, np.int64), 1, 1.0], 4)
    address = x.ctypes.data
    del x
    gc.collect()
    np.zeros(4)
    call()
    assert (ctypes.c_double * 4).from_address(address)[:] == [1, 2, 3, 4]


def test_a_sequence_runs_in_order_and_is_flat() -> None:
    (a, x, _), (b, y, _) = add(3, 0), add(3, 0, 2.0)
    whole = NativeSequence([a, NativeSequence([b, a])])
    whole()
    assert list(whole) == [a, b, a]
    assert (x.tolist(), y.tolist()) == ([3.0] * 3, [2.0] * 3)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_a_numba_kernel_as_a_native_call(dtype: str) -> None:
    x = np.arange(12).astype(dtype).reshape(4, 3)
    out = np.zeros(4, dtype)
    scale.native(out, operand(x), np.float32(2.5), True, extent=4)()
    assert out.tolist() == (x[:, 0] * np.float32(2.5)).astype(dtype).tolist()
    scale.native(out, x[:, 1:], 2.5, False, extent=4)()
    assert out.tolist() == x[:, 1].tolist()


def test_a_numba_kernel_without_parts() -> None:
    out = np.zeros(1)
    total.native(out, operand(np.arange(10.0)))()
    assert out[0] == 45


def test_a_kernel_refuses_arguments_that_it_cannot_pass() -> None:
    with pytest.raises(TypeError, match="str"):
        total.native(np.zeros(1), "text")


def test_a_c_function_by_its_address() -> None:
    text = """define void @copy(ptr %arguments, i64 %start, i64 %stop) {
      %w1 = getelementptr i64, ptr %arguments, i64 1
      %w2 = getelementptr i64, ptr %arguments, i64 2
      %w3 = getelementptr i64, ptr %arguments, i64 3
      %function = load ptr, ptr %arguments
      %out = load ptr, ptr %w1
      %x = load ptr, ptr %w2
      %bytes = load i64, ptr %w3
      %ignored = call ptr %function(ptr %out, ptr %x, i64 %bytes)
      ret void
    }"""
    memcpy = ctypes.cast(ctypes.CDLL(None).memcpy, ctypes.c_void_p).value
    x, out = np.arange(9.0), np.zeros(9)
    NativeCall(machine.load(text)["copy"], [memcpy, out, x, 7 * x.itemsize])()
    assert out.tolist() == [*x[:7], 0, 0]


# Gives up if its second argument says so; else adds 1 to the third.
MAYBE = """define void @maybe(ptr %arguments, i64 %start, i64 %stop) {
  %w1 = getelementptr i64, ptr %arguments, i64 1
  %w2 = getelementptr i64, ptr %arguments, i64 2
  %switch = load ptr, ptr %w1
  %refuse = load i64, ptr %switch
  store i64 %refuse, ptr %arguments
  %out = load ptr, ptr %w2
  %old = load i64, ptr %out
  %more = sub i64 1, %refuse
  %new = add i64 %old, %more
  store i64 %new, ptr %out
  ret void
}"""


def test_python_does_what_a_kernel_gives_up_and_the_rest_follows() -> None:
    refuse, done, log = np.zeros(1, np.int64), np.zeros(1, np.int64), []

    def maybe(name: str) -> NativeCall:
        kernel = machine.load(MAYBE)["maybe"]
        return NativeCall(kernel, [0, refuse, done], otherwise=lambda: log.append((name, int(out[0]))))

    first, out, _ = add(1, 0)
    last = maybe("c")
    whole = NativeSequence([maybe("a"), first, maybe("b"), first, last])
    whole()
    assert (done[0], out[0], log) == (3, 3.0, [])
    refuse[0] = 1
    whole()
    assert (done[0], out[0], log) == (3, 6.0, [("a", 3), ("b", 4), ("c", 6)])
    last()
    assert log[-1] == ("c", 6)
    refuse[0] = 0
    last()
    assert (done[0], len(log)) == (4, 4)


@pytest.mark.parametrize("refuse_in", [None, 0, 1, 3])
def test_a_sequence_runs_several_times_in_a_row(refuse_in: int | None) -> None:
    """Where a kernel gives up, Python does its work, then come the rest of that run and those behind it."""
    refuse, done, log = np.zeros(1, np.int64), np.zeros(1, np.int64), []

    def otherwise() -> None:
        log.append((int(done[0]), float(out[0])))
        refuse[0] = 0
        done[0] += 1

    first, out, _ = add(1, 0)
    kernel = machine.load(MAYBE)["maybe"]
    ask = NativeCall(machine.load(WHEN)["when"], [done, -1 if refuse_in is None else refuse_in, refuse])
    whole = NativeSequence([first, ask, NativeCall(kernel, [0, refuse, done], otherwise=otherwise), first])
    begin = float(out[0])
    whole(4)
    assert (done[0], out[0]) == (4, begin + 12)
    assert log == ([] if refuse_in is None else [(refuse_in, begin + 3 * refuse_in + 1.5)])
    whole(0)
    assert done[0] == 4


# Sets its third argument to 1 if the first is the second.
WHEN = """define void @when(ptr %arguments, i64 %start, i64 %stop) {
  %w1 = getelementptr i64, ptr %arguments, i64 1
  %w2 = getelementptr i64, ptr %arguments, i64 2
  %at = load ptr, ptr %arguments
  %now = load i64, ptr %at
  %then = load i64, ptr %w1
  %out = load ptr, ptr %w2
  %is = icmp eq i64 %now, %then
  %result = zext i1 %is to i64
  store i64 %result, ptr %out
  ret void
}"""


# Says −n in its first argument where another one is 0.
LEAVE_OUT = """define void @leave_out(ptr %arguments, i64 %start, i64 %stop) {
  %w1 = getelementptr i64, ptr %arguments, i64 1
  %w2 = getelementptr i64, ptr %arguments, i64 2
  %at = load ptr, ptr %w1
  %go = load i64, ptr %at
  %n = load i64, ptr %w2
  %none = icmp eq i64 %go, 0
  %less = sub i64 0, %n
  %status = select i1 %none, i64 %less, i64 0
  store i64 %status, ptr %arguments
  ret void
}"""


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("behind", [0, 1])
def test_a_kernel_has_those_behind_it_left_out(count: int, behind: int) -> None:
    """Up to the last of the sequence, which then begins anew."""
    go, never = np.zeros(1, np.int64), pytest.fail
    ask = NativeCall(machine.load(LEAVE_OUT)["leave_out"], [0, go, count], otherwise=never)
    skipped, other = [add(1, 0) for _ in range(count)], [add(1, 0) for _ in range(behind)]
    begin = [float(out[0]) for _, out, _ in (*skipped, *other)]
    whole = NativeSequence([ask, *(call for call, _, _ in (*skipped, *other))])
    for runs, added in ((1, 0), (3, 0), (2, 2)):
        go[0] = added
        whole(runs)
    gained = [float(out[0]) - b for (_, out, _), b in zip((*skipped, *other), begin, strict=True)]
    assert gained == [2 * 1.5 for _ in skipped] + [6 * 1.5 for _ in other]
    go[0] = 0
    ask()
