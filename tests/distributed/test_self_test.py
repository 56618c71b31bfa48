"""Which all-reduce is used: what follows from times, which times count, what is kept. Ranks are in ``tests/mpi``."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from disttensor import config
from disttensor.distributed import self_test
from disttensor.distributed.self_test import LENGTHS, OURS, Finding, decide, parse

EQUAL = np.full((4, 3), 1e-6)
NEVER = sys.maxsize


def faster(library: tuple[int, ...] = (), background: tuple[int, ...] = (), times: float = 1.3) -> np.ndarray:
    """Times where the library is faster at some of the lengths."""
    seconds = EQUAL.copy()
    seconds[list(library), 1] /= times
    seconds[list(background), 2] /= times
    return seconds


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (EQUAL, OURS),
        (faster((0, 1, 2, 3), (0, 1, 2, 3), times=1.2), OURS),  # not clearly
        (faster((1,), (1,)), OURS),  # neither up to a length nor from one on
        (faster((0,)), Finding(start=2 << 10)),
        (faster((0, 1)), Finding(start=32 << 10)),
        (faster((0, 2)), Finding(start=2 << 10)),
        (faster((0, 1, 2)), Finding(start=512 << 10)),
        (faster((3,)), Finding(end=2 << 20)),
        (faster((0, 2, 3)), Finding(start=2 << 10, end=256 << 10)),
        (faster((0, 1, 2, 3)), Finding(NEVER, NEVER)),
        (faster((), (0,)), OURS),  # short sums in the background are machine code's
        (faster((), (2, 3)), Finding(background_end=256 << 10)),
        (faster((), (0, 1, 2, 3)), Finding(background_end=1 << 10)),
    ],
)
def test_the_library_is_used_where_it_is_clearly_faster_up_to_a_length_or_from_one_on(seconds, expected):
    assert decide(seconds) == expected


class Ranks:
    """A group whose other ranks find the same, and its three ways to sum; a clock, and switches to others' threads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.switches = 0.0, 0
        self.takes = np.array([[1e-6, 2e-6, 3e-6]] * 4)
        self.calls = 0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_nivcsw=self.switches))

    def all_reduce(self, array: np.ndarray, op: str = "sum") -> np.ndarray:
        return array

    def way(self, number: int):
        def combine(array: np.ndarray) -> None:
            self.calls += 1
            self.now += self.takes[LENGTHS.index(array.nbytes), number]
            self.after(number)

        return combine

    def after(self, number: int) -> None:
        """What happens behind a call."""

    def best(self) -> np.ndarray | None:
        return self_test._best(self, [self.way(i) for i in range(3)], np.zeros(LENGTHS[-1] // 4, np.float32))


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    return Ranks(monkeypatch)


def test_the_best_time_of_each_way_counts(ranks):
    def after(number):
        ranks.now += 1e-4 * (ranks.calls % 97 == 0)

    ranks.after = after
    np.testing.assert_allclose(ranks.best(), ranks.takes, rtol=1e-6)


def test_times_in_which_a_core_was_given_to_others_do_not_count(ranks):
    calls = iter(range(10**6))

    def after(number):
        if number == 1 and next(calls) < 100:  # of 299
            ranks.switches += 1
            ranks.now -= 1.5e-6  # faster than it ever is undisturbed

    ranks.after = after
    np.testing.assert_allclose(ranks.best(), ranks.takes, rtol=1e-6)


def test_nothing_is_found_where_all_is_disturbed(ranks):
    def after(number):
        ranks.switches += number == 2

    ranks.after = after
    assert ranks.best() is None


def test_it_takes_no_longer_than_50_ms_and_a_little(ranks):
    ranks.takes[3, 2] = 0.02
    assert ranks.best() is None
    assert ranks.now < 0.12
    ranks.takes[:], ranks.calls = 0.03, 0
    assert ranks.best() is None
    assert ranks.calls < 10


def test_of_two_measurements_what_is_worse_for_the_library_counts():
    slow = np.full((4, 3), 1e-6)
    slow[:, 0] = 1.3e-6  # ours, in one of the two
    for first, second, expected in (
        (faster((0, 1), (3,)), faster((1, 2)), OURS),
        (faster((0, 1), (3,)), faster((0,), (3,)), Finding(start=2 << 10, background_end=2 << 20)),
        (EQUAL, slow, OURS),
    ):
        for measurements in (first, second), (second, first):
            assert decide(self_test._in_doubt_ours(*measurements)) == expected


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[SimpleNamespace, SimpleNamespace]:
    """Rank 0 of two ranks on two cores, and their memory; nothing is known, and times may be found."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(config, "_self_tuning", True)
    monkeypatch.setattr(self_test, "_known", {})
    monkeypatch.setattr(self_test.machine, "description", lambda: "a processor")
    monkeypatch.setattr(self_test, "_key_of", self_test._key_of.__wrapped__)
    return SimpleNamespace(library="an MPI library", size=2), SimpleNamespace(addresses=[0, 0], cores=2)


def test_what_was_found_is_kept_for_other_processes(job, tmp_path, monkeypatch):
    assert self_test.known(*job) is None
    assert self_test._remember(*job, faster((0,))) == Finding(start=2 << 10)
    monkeypatch.setattr(self_test, "_known", {})
    assert self_test.known(*job) == Finding(start=2 << 10)
    (path,) = (tmp_path / "disttensor" / "allreduce").iterdir()
    assert path.stat().st_mode & 0o077 == 0
    (record,) = self_test.kept()
    assert record["seconds"] == faster((0,)).tolist()
    path.unlink()
    assert self_test.known(*job) == Finding(start=2 << 10)  # as long as this process goes on
    monkeypatch.setattr(self_test, "_known", {})
    assert self_test.known(*job) is None


def test_what_another_group_kept_before_holds(job, monkeypatch):
    assert self_test._remember(*job, faster((0,))) == Finding(start=2 << 10)
    assert self_test._remember(*job, EQUAL) == Finding(start=2 << 10)


def test_where_nothing_was_found_it_is_looked_for_again_after_an_hour(job, monkeypatch):
    now = [1e9]
    monkeypatch.setattr(time, "time", lambda: now[0])
    assert self_test._remember(*job, None) == OURS
    monkeypatch.setattr(self_test, "_known", {})
    now[0] += 3599
    assert self_test.known(*job) == OURS
    assert not self_test.kept()
    now[0] += 2
    assert self_test.known(*job) == OURS  # as long as this process goes on
    monkeypatch.setattr(self_test, "_known", {})
    assert self_test.known(*job) is None
    assert self_test._remember(*job, faster((0,))) == Finding(start=2 << 10)
    now[0] += 1e7
    monkeypatch.setattr(self_test, "_known", {})
    assert self_test.known(*job) == Finding(start=2 << 10)


@pytest.mark.parametrize(
    "change", ["library", "size", "addresses", "cores", "threads", "settings", "code", "processor", "version"]
)
def test_it_is_about_what_the_times_depend_on(job, monkeypatch, change):
    comm, memory = job
    self_test._remember(*job, faster((0,)))
    if change == "library":
        comm.library = "another MPI library"
    elif change == "size":
        comm.size = 3
    elif change == "addresses":
        memory.addresses = [0]
    elif change == "cores":
        memory.cores = 4
    elif change == "threads":
        monkeypatch.setattr(config, "_threads", 7)
    elif change == "settings":
        monkeypatch.setenv("OMPI_MCA_btl", "self,tcp")
    elif change == "code":
        monkeypatch.setattr(self_test.machine, "description", lambda: "another processor")
    elif change == "processor":
        monkeypatch.setattr(self_test.tuning, "processor", lambda: "another model")
    else:
        monkeypatch.setattr(self_test, "__version__", "another")
    assert self_test.known(*job) is None


@pytest.mark.parametrize(
    "change", [
        {"facts": {}}, {"seconds": None, "at": 0}, {"seconds": None, "at": 1e300}, {"seconds": None, "at": "now"},
         {"facts": None}, {"seconds": EQUAL[:3].tolist()}, {"seconds": (-EQUAL).tolist()},
        {"seconds": [[1e-6, 1e-6, None]] * 4}, {"seconds": [[1e-6, 1e-6, float("nan")]] * 4}, {"seconds": "1"},
        {"seconds": [[1, 1, 10**400]] * 4}, {"seconds": [[1, 1, [1]]] * 4}, b"", b"\xff", b"[]", b"[" * 100_000,
    ],
)  # fmt: skip
def test_whatever_else_a_file_holds_is_nothing(job, tmp_path, monkeypatch, change):
    self_test._remember(*job, faster((0,)))
    (path,) = (tmp_path / "disttensor" / "allreduce").iterdir()
    good = path.read_bytes()
    assert parse(good) is not None
    path.write_bytes(change if isinstance(change, bytes) else json.dumps(json.loads(good) | change).encode())
    monkeypatch.setattr(self_test, "_known", {})
    assert self_test.known(*job) is None
    assert self_test._remember(*job, faster((3,))) == Finding(end=2 << 20)
    assert parse(path.read_bytes()) == Finding(end=2 << 20)


def test_nothing_is_to_be_found_where_ranks_outnumber_cores_or_nothing_may_depend_on_it(job, monkeypatch):
    comm, memory = job
    self_test._remember(*job, faster((0,)))
    memory.cores = 1
    assert self_test.known(*job) == OURS
    memory.cores = 2
    monkeypatch.setattr(config, "_shards", 8)
    assert self_test.known(*job) == OURS
    monkeypatch.setattr(config, "_shards", 0)
    monkeypatch.setattr(config, "_self_tuning", False)
    assert self_test.known(*job) == OURS


def test_without_a_cache_it_holds_for_this_process(job, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert self_test.known(*job) is None
    assert self_test._remember(*job, faster((0,))) == Finding(start=2 << 10)
    assert self_test.known(*job) == Finding(start=2 << 10)
    assert self_test.kept() == []
