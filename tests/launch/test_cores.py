"""How many cores a process may keep busy, as control groups of both versions say."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from launch import cores


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where groups are mounted; this process is in none that is there."""
    monkeypatch.setattr(cores, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(cores, "_OWN", tmp_path / "own")
    (tmp_path / "own").write_text("3:memory:/m\n2:cpu,cpuacct:/a/b\n0::/c/d\n")
    return tmp_path / "groups"


def test_no_limit(groups):
    assert cores.time_limit() == math.inf
    write(groups / "c" / "d", cpu__max="max 100000")
    write(groups / "cpu" / "a" / "b", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert cores.time_limit() == math.inf
    (groups.parent / "own").unlink()
    assert cores.time_limit() == math.inf
    assert cores.usable_cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("folder", ["c/d", "c", "."])
def test_version_2(groups, folder):
    write(groups / folder, cpu__max="150000 100000")
    assert cores.time_limit() == 1.5
    assert cores.usable_cores() == 1


@pytest.mark.parametrize("folder", ["a/b", "a", "."])
def test_version_1(groups, folder):
    write(groups / "cpu" / folder, cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    assert cores.time_limit() == 0.5
    assert cores.usable_cores() == 1


def test_the_smallest_of_all_groups(groups):
    write(groups / "c", cpu__max="300000 100000")
    write(groups / "c" / "d", cpu__max="900000 100000")
    write(groups, cpu__max="nonsense")
    assert cores.time_limit() == 3


def test_never_more_than_the_affinity(groups, monkeypatch):
    write(groups, cpu__max="6400000 100000")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(3)))
    assert cores.usable_cores() == 3
    write(groups, cpu__max="200000 100000")
    assert cores.usable_cores() == 2
