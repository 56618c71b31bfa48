"""How many threads pay: what follows from measurements, how long it holds, and that it changes no result."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import numpy as np
import pytest

from disttensor import config
from disttensor.kernels import executor, gemm, machine, tuning
from disttensor.kernels.tuning import Finding, decide

FREE = Finding(2, 1, 1e-6, (1, 2), (1.0, 1.9), (1.0, 1.4))
ALONE = FREE._replace(threads=1)


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Finding]:
    """What measurements will find, the last one again and again; nothing is known, and two threads are wished for."""
    found: list[Finding] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(config, "_threads", 2)
    monkeypatch.setattr(config, "_self_tuning", True)
    monkeypatch.setattr(tuning, "usable_cores", lambda: 2)
    monkeypatch.setattr(tuning, "_known", {})
    executor.forget_waits()  # of other tests
    measure = tuning._measure
    monkeypatch.setattr(tuning, "_measure", lambda threads: found.pop(0) if found else measure(threads))
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How late it is."""
    now = [1e9]
    for name in ("time", "monotonic"):
        monkeypatch.setattr(tuning.time, name, lambda: now[0])
    return now


def kept(folder: Path) -> Path:
    (path,) = (folder / "disttensor" / "threads").iterdir()
    return path


@pytest.mark.parametrize(
    ("arithmetic", "memory", "threads"),
    [
        ((1, 1.9, 3.6), (1, 1.5, 1.6), 4),
        ((1, 1.9, 1.9), (1, 1.5, 1.5), 2),  # hyper-threads
        ((1, 1.9, 3.0), (1, 1.0, 0.6), 2),  # memory far away
        ((1, 1.0, 1.0), (1, 1.0, 1.0), 1),  # one core
        ((1, 1.02, 1.04), (1, 1.02, 1.04), 1),  # for so little it is not worth it
        ((1, 0.7, 2.5), (1, 0.9, 2.0), 4),
    ],
)
def test_as_few_threads_as_come_near_the_best(arithmetic, memory, threads):
    assert decide((1, 2, 4), arithmetic, memory, (0, 0, 0)).threads == threads


@pytest.mark.parametrize(("meeting", "grains"), [(0.0, 1), (6e-6, 1), (6.1e-6, 2), (59e-6, 10), (1.0, 64)])
def test_a_part_takes_as_long_as_the_meeting(meeting, grains):
    assert decide((1, 2), (1, 2), (1, 2), (0.0, meeting)).grains == grains
    assert decide((1, 2), (1, 1), (1, 1), (0.0, meeting)).grains == 1  # who is alone meets nobody


def test_nothing_is_measured_where_nothing_depends_on_it(measured, monkeypatch):
    monkeypatch.setattr(tuning, "_measure", None)
    monkeypatch.setattr(config, "_self_tuning", False)
    assert tuning.limits() == (2, 1)
    assert tuning.find() is None
    monkeypatch.setattr(config, "_self_tuning", True)
    monkeypatch.setattr(config, "_shards", 8)
    assert tuning.limits() == (2, 1)
    monkeypatch.setattr(config, "_shards", 0)
    monkeypatch.setattr(config, "_threads", 1)
    assert tuning.limits() == (1, 1)


@pytest.mark.parametrize(("text", "expected"), [("0", False), ("1", True), (None, True)])
def test_the_environment_decides(monkeypatch, text, expected):
    monkeypatch.setattr(config, "_self_tuning", None)
    if text is None:
        monkeypatch.delenv("DISTTENSOR_TUNING")
    else:
        monkeypatch.setenv("DISTTENSOR_TUNING", text)
    assert config.self_tuning() is expected
    config.set_self_tuning(not expected)
    assert config.self_tuning() is not expected


def test_a_finding_is_kept_for_other_processes(measured, tmp_path, monkeypatch):
    measured += [FREE, ALONE]
    assert tuning.limits() == (2, 1)
    assert tuning.limits() == (2, 1)
    tuning._known.clear()
    assert tuning.limits() == (2, 1)
    assert measured == [ALONE]
    assert kept(tmp_path).stat().st_mode & 0o077 == 0
    monkeypatch.setattr(config, "_threads", 3)  # but there are two cores
    assert tuning.limits() == (2, 1)
    assert measured == [ALONE]


def test_what_restricts_is_measured_again_soon_and_then_less_and_less_often(measured, clock):
    spans = []
    measured += [ALONE]
    tuning.limits()
    for _ in range(6):
        measured += [ALONE]
        start = clock[0]
        while measured:
            clock[0] += 0.25
            assert tuning.limits() == (1, 1)
        spans.append(clock[0] - start)
    assert spans == [0.75, 2.25, 8.25, 32.25, 60.25, 60.25]
    measured += [FREE, ALONE]
    clock[0] += 61
    assert tuning.limits() == (2, 1)
    clock[0] += 29 * 86400
    assert tuning.limits() == (2, 1)
    clock[0] += 2 * 86400
    assert tuning.limits() == (1, 1)
    clock[0] += 3
    measured += [FREE]
    assert tuning.limits() == (2, 1)


@pytest.mark.skipif(not executor.HAS_THREADS, reason="no helpers on this system")
def test_helpers_that_come_late_let_it_be_measured_again(measured, clock):
    measured += [FREE, ALONE]
    assert tuning.limits() == (2, 1)
    executor.execute(0, 0, 1, 2)
    executor._pool().skip_and_backoff[1] = 1023
    clock[0] += 4
    assert tuning.limits() == (2, 1)
    clock[0] += 2
    assert tuning.limits() == (1, 1)
    executor.forget_waits()
    measured += [FREE]
    clock[0] += 3
    assert tuning.limits() == (2, 1)


@pytest.mark.parametrize("change", [
    {"threads": 3}, {"threads": True + 1.5}, {"grains": 0}, {"grains": 10**9}, {"counts": [1, 4]}, {"memory": [1.0]},
    {"until": 1e300}, {"until": "later"}, {"holds": -1}, {"holds": 1e300}, {"more": 1}, {"counts": []},
    {"arithmetic": 1}, {"memory": [1, 10**400]}, None,
])  # fmt: skip
def test_whatever_else_a_file_holds_is_measured_anew(measured, tmp_path, change):
    measured += [FREE, ALONE]
    tuning.limits()
    fields = json.loads(kept(tmp_path).read_bytes())
    kept(tmp_path).write_text("[" * 100_000 if change is None else json.dumps(fields | change))
    tuning._known.clear()
    assert tuning.limits() == (1, 1)
    assert json.loads(kept(tmp_path).read_bytes())["threads"] == 1


def test_without_a_cache_it_is_measured_all_the_same(measured, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    measured += [FREE, ALONE]
    assert tuning.limits() == tuning.limits() == (2, 1)
    assert measured == [ALONE]


@pytest.mark.skipif(not executor.HAS_THREADS, reason="no helpers on this system")
def test_a_measurement_of_this_machine(tmp_path):
    finding = tuning.find()
    assert finding is not None
    assert finding.counts == (1, 2)
    follows = decide(finding.counts, finding.arithmetic, finding.memory, (0, finding.meeting))
    assert finding == follows._replace(until=finding.until, holds=finding.holds)
    for speeds in (finding.arithmetic, finding.memory):
        assert speeds[0] == 1
        assert speeds[1] > 0
    assert finding.meeting >= 0
    assert json.loads(kept(tmp_path).read_bytes()) == json.loads(json.dumps(finding._asdict()))


@pytest.mark.skipif(not executor.HAS_THREADS, reason="no helpers on this system")
def test_the_median_of_rounds_counts_and_for_meetings_the_quickest(monkeypatch):
    """On a machine that is known: the second of each kind is held up for a second."""
    rounds = {}

    def run(piece, threads):
        key = (piece._instruction[0], piece._instruction[2], threads)
        rounds[key] = rounds.get(key, 0) + 1
        if piece._times > 1:
            seconds = piece._times * (10e-6 if threads == 1 else 5e-6 + 12e-6)
        else:
            seconds = 1e-3 / (1 if threads == 1 else {arithmetic: 2.0, memory: 1.25}[piece._instruction[0]])
        return seconds + (rounds[key] == 2)

    arithmetic, memory = (tuning._addresses()[name] for name in ("arithmetic", "memory"))
    monkeypatch.setattr(tuning._Piece, "run", run)
    monkeypatch.setattr(tuning, "_LIMIT_S", 1e6)
    finding = tuning._measure(2)
    assert set(rounds.values()) == {tuning._ROUNDS}
    assert finding.arithmetic == pytest.approx((1, 2))
    assert finding.memory == pytest.approx((1, 1.25))
    assert finding.meeting == pytest.approx(12e-6)
    assert (finding.threads, finding.grains) == (2, 2)


NOTE_PARTS = """
define void @note(ptr %arguments, i64 %start, i64 %stop) {
  %out = load ptr, ptr %arguments
  %at = getelementptr i64, ptr %out, i64 %start
  %length = sub i64 %stop, %start
  store i64 %length, ptr %at
  ret void
}
"""


@pytest.mark.skipif(not executor.HAS_THREADS, reason="no helpers on this system")
@pytest.mark.parametrize(("extent", "grain", "least"), [(1000, 10, 1), (1000, 10, 7), (1003, 1, 100), (139, 10, 7)])
def test_a_thread_takes_so_many_grains_at_once(extent, grain, least):
    parts = np.zeros(extent, np.int64)
    block = (ctypes.c_int64 * 1)(parts.ctypes.data)
    words = (ctypes.c_int64 * 4)(machine.load(NOTE_PARTS)["note"], ctypes.addressof(block), extent, grain)
    for _ in range(20):
        parts[:] = 0
        executor.forget_waits()
        assert executor.execute(ctypes.addressof(words), 1, 1, 2, least) == 1
        starts = np.flatnonzero(parts)
        assert np.array_equal(starts + parts[starts], [*starts[1:], extent])
        assert (starts % grain == 0).all()
        assert (parts[starts][:-1] >= least * grain).all()
        assert (len(starts) > 1) == (extent >= 2 * least * grain)


@pytest.mark.parametrize("finding", [FREE, ALONE, FREE._replace(grains=5)])
def test_no_bit_depends_on_a_finding(measured, finding):
    x, y = (np.random.default_rng(i).normal(size=(300, 300)).astype(np.float32) for i in range(2))
    config.set_threads(1)
    alone, out = np.empty_like(x), np.empty_like(x)
    gemm.multiply(alone, x, y)
    config.set_threads(2)
    measured.append(finding)
    gemm.multiply(out, x, y)
    assert not measured
    assert out.tobytes() == alone.tobytes()
