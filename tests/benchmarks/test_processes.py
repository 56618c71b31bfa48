"""Workers: what they are given, that they rest between rounds, and how failures are told."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from benchmarks import machine
from benchmarks.contestants import CONTESTANTS, OURS
from benchmarks.processes import Worker, WorkerError, environment


def wait_until_it_rests(worker: Worker) -> None:
    """Until the process is stopped: a signal takes a moment."""
    while Path(f"/proc/{worker._process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
        time.sleep(0.005)


def test_training_rounds() -> None:
    with Worker(CONTESTANTS[OURS], "training", "W1", threads=1, steps=4) as worker:
        assert worker.ready["parameters"] == 50890
        assert 0 < worker.ready["import_s"] < worker.ready["first_step_s"]
        for _ in range(2):
            answer = worker.round()
            assert len(answer["seconds"]) == 4
            assert all(seconds > 0 for seconds in answer["seconds"])
            assert answer["peak_bytes"] > 10e6
            wait_until_it_rests(worker)
        assert len(os.sched_getaffinity(worker._process.pid)) == 1
    assert worker._process.returncode is not None


def test_roofline() -> None:
    with Worker(CONTESTANTS[OURS], "roofline", "W1", threads=len(machine.cores())) as worker:
        assert set(worker.round()) == {"flops", "bytes"}


def test_size_counts_the_package_and_what_it_needs() -> None:
    with Worker(CONTESTANTS[OURS], "size", "W1", threads=1) as worker:
        found = worker.ready
    assert {"disttensor", "numpy", "numba", "llvmlite", "rich", "pygments"} <= set(found["distributions"])
    assert "pytest" not in found["distributions"]
    assert found["bytes"] > 100e6


def test_failures_are_told() -> None:
    with pytest.raises(WorkerError, match="KeyError: 'nonsense'"):
        Worker(CONTESTANTS[OURS], "nonsense", "W1", threads=1)
    with pytest.raises(WorkerError, match="KeyError: 'W0'"):
        Worker(CONTESTANTS[OURS], "training", "W0", threads=1)


def test_a_dead_worker_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "dumps", lambda job: "no job at all")
    with pytest.raises(WorkerError, match="ended with code 1: json.decoder.JSONDecodeError"):
        Worker(CONTESTANTS[OURS], "training", "W1", threads=1)


def test_a_peer_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("benchmarks.contestants.PEERS_ENVIRONMENT", tmp_path)
    with pytest.raises(WorkerError, match="python -m benchmarks install"):
        Worker(CONTESTANTS["jax"], "training", "W1", threads=1)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "512")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = environment(3)
    assert not {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"} & set(found)
    assert found["OMP_NUM_THREADS"] == found["DISTTENSOR_THREADS"] == "3"
