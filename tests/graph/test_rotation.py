"""Programs that are repeated with the end of each run within the next: same results, as late as can be."""

from __future__ import annotations

import ctypes
import signal

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from disttensor.graph.rotation import Entry, Rotation, interleaved
from disttensor.kernels import copying, machine
from disttensor.kernels.dealing import Dealer
from disttensor.kernels.native import NativeCall, NativeSequence

WORDS = 12
"""Of the memory that the programs of these tests work on."""


def adds(memory: np.ndarray, reads: list[slice], write: slice, number: int, **facts: bool) -> Entry:
    """A call that leaves in one part of memory a number that depends on others."""

    def call() -> None:
        memory[write] = (memory[write] * 3 + number + sum(int(memory[part].sum()) for part in reads)) % 1009

    return Entry(call, (*(memory[part] for part in reads), memory[write]), (memory[write],), **facts)


parts = st.tuples(st.integers(0, WORDS - 1), st.integers(1, 3)).map(lambda p: slice(p[0], min(p[0] + p[1], WORDS)))
calls = st.tuples(st.lists(parts, max_size=2), parts, st.booleans())


@given(st.lists(calls, max_size=8), st.lists(calls, max_size=6), st.integers(1, 4), parts)
@settings(max_examples=200)
def test_runs_leave_what_they_leave_one_after_another(early, late, times, inputs):
    results = []
    for rotates in (False, True):
        memory, given_ = np.arange(WORDS), iter(range(100))
        entries = [adds(memory, reads, write, i, meets=m) for i, (reads, write, m) in enumerate(early)]
        ends = [adds(memory, reads, write, 50 + i, meets=m, is_late=True) for i, (reads, write, m) in enumerate(late)]

        def write(memory=memory, given_=given_) -> None:
            memory[inputs] = next(given_)

        if rotates:
            Rotation([memory[inputs]], entries, ends).repetition(write)(times)
        else:
            for _ in range(times):
                for call in (write, *(entry.call for entry in (*entries, *ends))):
                    call()
        results.append(memory)
    np.testing.assert_array_equal(*results)


def entry(name: str, memory: np.ndarray, reads: str, writes: str, **facts: bool) -> Entry:
    """A call named `name` on the places of some letters."""
    found = [tuple(memory[ord(c) - ord("a") :][:1] for c in letters) for letters in (reads, writes)]
    return Entry(name, *found, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("early", "late", "order"),
    [
        ([("1", "a", "x"), ("2", "b", "y")], [("A", "g", "a"), ("B", "h", "b")], "A1B2"),  # before it is read
        ([("1", "", "x"), ("2", "", "g")], [("A", "g", "a")], "1A2"),  # before what it reads is overwritten
        ([("1", "", "x"), ("2", "", "a"), ("3", "", "b")], [("A", "g", "a")], "1A23"),  # before it is overwritten
        ([("1", "b", "x")], [("A", "g", "a"), ("B", "h", "b")], "AB1"),  # the ends keep their order
        ([("1", "g", "x")], [("A", "g", "a")], "1A"),  # to read the same is no conflict
    ],
)
def test_an_end_comes_as_late_as_it_can(early, late, order):
    memory = np.zeros(26)
    found = interleaved(
        [entry(*call[:1], memory, *call[1:]) for call in early], [entry(c[0], memory, *c[1:]) for c in late]
    )
    assert "".join(str(one.call) for one in found) == order


def test_calls_that_meet_other_ranks_keep_their_order():
    memory = np.zeros(26)
    early = [entry("1", memory, "x", "y"), entry("2", memory, "p", "q", meets=True)]
    late = [entry("A", memory, "a", "b", meets=True), entry("B", memory, "c", "d")]
    assert "".join(str(one.call) for one in interleaved(early, late)) == "1A2B"


@pytest.mark.parametrize("is_native", [False, True])
@pytest.mark.parametrize("fails", ["early", "late"])
def test_what_is_left_of_the_run_before_is_completed_if_a_run_fails(is_native, fails):
    memory, runs, one = np.zeros(3), [], np.ones(1)

    def trouble() -> None:
        runs.append(memory.copy())
        memory[1] = 7
        if len(runs) == 2:
            raise ValueError("no")

    def copy(target: int, source: int, **facts: bool) -> Entry:
        part, read = memory[target : target + 1], memory[source : source + 1]
        call = copying.bind(part, read)
        assert isinstance(call, NativeCall)
        return Entry(call if is_native else call.__call__, (read,), (part,), **facts)

    asks = NativeCall(_says(1), (1,), otherwise=trouble) if is_native else trouble
    checks = Entry(asks, (memory[2:],), (), is_late=fails == "late")
    takes, gives = copy(2, 0), copy(1, 2, is_late=True)
    early, late = ([checks, takes], [gives]) if fails == "early" else ([takes], [checks, gives])
    with pytest.raises(ValueError, match="no"):
        Rotation([memory[:1]], early, late).repetition(copying.bind(memory[:1], one))(3)
    assert len(runs) == 2
    assert memory[1] == (1 if fails == "early" else 7)


def test_what_a_call_leaves_out_stays_left_out_if_a_run_fails():
    memory, one, fails = np.zeros(3), np.ones(1), [False, True]

    def trouble() -> None:
        if fails.pop(0):
            raise ValueError("no")

    checks = Entry(NativeCall(_says(1), (1,), otherwise=trouble), (memory[2:],), ())
    takes = Entry(copying.bind(memory[2:], memory[:1]), (memory[:1],), (memory[2:],))
    # The end copies a number, and leaves out what would overwrite the copy.
    spoils = copying.bind(memory[1:2], np.full(1, 9.0))
    skips = NativeCall(_says(-1), (0,), otherwise=trouble)
    ends = NativeSequence([copying.bind(memory[1:2], memory[2:]), skips, spoils])
    gives = Entry(ends, (memory[2:],), (memory[1:2],), is_late=True)
    with pytest.raises(ValueError, match="no"):
        Rotation([memory[:1]], [checks, takes], [gives]).repetition(copying.bind(memory[:1], one))(3)
    assert memory.tolist() == [1, 1, 1]


@pytest.mark.parametrize("comes_in", [1, 2, 3])
def test_runs_are_completed_if_a_signal_raises_behind_them(comes_in):
    memory, runs = np.zeros(3, np.int64), ctypes.c_int64(0)
    dealer = Dealer(memory[:1], runs)
    dealer.deal(np.array([1, 2, 3]))
    libc_raise = ctypes.cast(ctypes.CDLL(None)["raise"], ctypes.c_void_p).value
    raises = NativeCall(_raises(), (libc_raise, memory[:1], comes_in, signal.SIGUSR1))
    takes = Entry(copying.bind(memory[2:], memory[:1]), (memory[:1],), (memory[2:],))
    gives = Entry(copying.bind(memory[1:2], memory[2:]), (memory[2:],), (memory[1:2],), is_late=True)

    def trouble(*args: object) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGUSR1, trouble)
    try:
        with pytest.raises(KeyboardInterrupt):
            Rotation([memory[:1]], [Entry(raises, (memory[:1],), ()), takes], [gives]).repetition(dealer.call)(3)
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert runs.value == (1 if comes_in == 1 else 3)
    assert (memory == runs.value).all()


def _raises() -> int:
    """Call a function with a number if there is another number in memory."""
    text = """
define void @raises(ptr %arguments, i64 %start, i64 %stop) {
  %function = load ptr, ptr %arguments
  %memory.at = getelementptr i64, ptr %arguments, i64 1
  %memory = load ptr, ptr %memory.at
  %wanted.at = getelementptr i64, ptr %arguments, i64 2
  %wanted = load i64, ptr %wanted.at
  %found = load i64, ptr %memory
  %same = icmp eq i64 %found, %wanted
  br i1 %same, label %call, label %end
call:
  %number.at = getelementptr i64, ptr %arguments, i64 3
  %number = load i32, ptr %number.at
  call i32 %function(i32 %number)
  br label %end
end:
  ret void
}
"""
    return machine.load(text)["raises"]


def _says(status: int) -> int:
    """What does nothing, and gives up (1), or leaves out calls behind it (less than 0)."""
    text = f"define void @says(ptr %block, i64 %start, i64 %stop) {{\n store i64 {status}, ptr %block\n ret void\n}}"
    return machine.load(text)["says"]
