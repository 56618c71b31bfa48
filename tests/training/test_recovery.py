"""A run that is killed with SIGKILL and started again ends with the bits of one that was not."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import disttensor as dt
from disttensor.checkpoint import Checkpoint, disk, find_checkpoints, interval
from disttensor.errors import ArgumentError, CheckpointError
from launch.exit_codes import INTERRUPTED, REQUEUE

PROGRAM = Path(__file__).with_name("resume_program.py")


def run(folder: Path, output: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), str(folder), str(output), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})


def assert_same(found: Path, expected: Path) -> None:
    for suffix in (".json", ".csv"):
        assert Path(f"{found}{suffix}").read_text() == Path(f"{expected}{suffix}").read_text()
    for suffix, load in ((".npz", np.load), (".best.safetensors", load_file), (".latest.safetensors", load_file)):
        one, other = (dict(load(f"{path}{suffix}")) for path in (found, expected))
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].tobytes() == other[name].tobytes(), (suffix, name)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expected")
    ended = run(folder / "checkpoints", folder / "out")
    assert ended.returncode == 0, ended.stderr
    return folder / "out"


# An epoch has 11 batches: within one, after its last batch, and again and again.
@pytest.mark.parametrize(("save_freq", "kills"), [("epoch", [25]), ("11", [15, 14]), ("1", [12, 5, 30])])
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, expected: Path, save_freq: str, kills: list[int]) -> None:
    arguments = [] if save_freq == "epoch" else [save_freq]
    for at in kills:
        ended = run(tmp_path / "checkpoints", tmp_path / "out", *arguments, DIE_AT=str(at))
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    # Steps take a millisecond: a save that was begun just before the kill need not have come to its end.
    saved = list((tmp_path / "checkpoints").glob("[0-9]*-step-*"))
    ended = run(tmp_path / "checkpoints", tmp_path / "out", *arguments)
    assert ended.returncode == 0, ended.stderr
    assert ("Going on from checkpoint" in ended.stdout) == bool(saved)
    assert_same(tmp_path / "out", expected)


@pytest.mark.parametrize(
    ("name", "code", "at"), [("SIGTERM", REQUEUE, 17), ("SIGUSR1", REQUEUE, 11), ("SIGINT", INTERRUPTED, 21)]
)
def test_a_signal_saves_and_ends_with_its_code(tmp_path: Path, expected: Path, name: str, code: int, at: int) -> None:
    ended = run(tmp_path / "checkpoints", tmp_path / "out", DIE_AT=str(at), DIE_BY=name)
    assert ended.returncode == code, ended.stderr
    assert "is complete" in ended.stdout
    (path,) = find_checkpoints(tmp_path / "checkpoints")
    assert path.endswith(f"-step-{at}")
    ended = run(tmp_path / "checkpoints", tmp_path / "out")
    where = f"epoch {1 + at // 11}, batch {1 + at % 11}" if at % 11 else f"the end of epoch {at // 11}"
    assert f"-step-{at}: {where}\n" in ended.stdout
    assert_same(tmp_path / "out", expected)


def test_a_time_limit_that_comes_near_saves_and_ends(tmp_path: Path, expected: Path) -> None:
    ended = run(tmp_path / "checkpoints", tmp_path / "out", SLURM_JOB_END_TIME=str(int(time.time()) + 20))
    assert ended.returncode == REQUEUE, ended.stderr
    assert "the time limit ended training; checkpoint 000001-step-1 is complete" in ended.stdout
    ended = run(tmp_path / "checkpoints", tmp_path / "out", SLURM_JOB_END_TIME=str(int(time.time()) + 3600))
    assert ended.returncode == 0, ended.stderr
    assert_same(tmp_path / "out", expected)


def test_a_finished_run_that_is_started_again_is_still_finished(tmp_path: Path, expected: Path) -> None:
    ended = [run(tmp_path / "checkpoints", tmp_path / "out") for _ in range(2)]
    assert [each.returncode for each in ended] == [0, 0], ended[-1].stderr
    epochs = len(json.loads(Path(f"{expected}.json").read_text())[0]["loss"])
    assert f": the end of epoch {epochs}\n" in ended[-1].stdout
    assert_same(tmp_path / "out", expected)


def fit(folder: Path, **options: object) -> object:
    model = dt.Sequential([dt.layers.Dense(1)])
    model.compile("sgd", "mse")
    backup = dt.callbacks.BackupAndRestore(folder, **options.pop("backup", {}))
    return model.fit(np.ones((8, 2)), np.ones((8, 1)), epochs=2, verbose=0, callbacks=[backup], **options)


def test_the_end_of_training_removes_what_it_saved(tmp_path: Path) -> None:
    fit(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    fit(tmp_path / "b", backup={"delete_checkpoint": False, "double_checkpoint": True, "save_freq": 1})
    assert len(find_checkpoints(tmp_path / "b")) == 2


@pytest.mark.parametrize("save_freq", [timedelta(milliseconds=1), "auto"], ids=["time", "auto"])
def test_saves_by_time(tmp_path: Path, save_freq: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interval, "_FIRST", 0.001)

    class Enough(dt.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = any(Path(path).name >= "000003" for path in find_checkpoints(tmp_path))
            batches.append(batch)

    batches: list[int] = []
    model = dt.Sequential([dt.layers.Dense(1)])
    model.compile("sgd", "mse")
    backup = dt.callbacks.BackupAndRestore(tmp_path, save_freq, mtbf=timedelta(milliseconds=1), delete_checkpoint=False)
    ones = itertools.repeat((np.ones((1, 2)), np.ones((1, 1))))
    model.fit(ones, steps_per_epoch=1 << 40, verbose=0, callbacks=[Enough(), backup])
    assert batches == [*range(len(batches))]  # so many saves, all within an epoch


def test_the_best_checkpoints_of_a_training_stay(tmp_path: Path) -> None:
    class Scores(dt.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs |= {"score": [0.2, 0.9, 0.3, 0.8, 0.1][epoch], "note": "no number, and no metric"}

    model = dt.Sequential([dt.layers.Dense(1)])
    model.compile("sgd", "mse")
    backup = dt.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False, keep_best=2, monitor="score", mode="max")
    model.fit(np.ones((8, 2)), np.ones((8, 1)), epochs=5, verbose=0, callbacks=[Scores(), backup])
    kept = {Checkpoint(path).step: Checkpoint(path).manifest.metrics["score"] for path in find_checkpoints(tmp_path)}
    assert kept == {2: 0.9, 4: 0.8, 5: 0.1}
    found = backup.manager.best()
    assert found is not None
    assert found.step == 2
    assert found.state()["logs"]["note"] == "no number, and no metric"


def test_a_writer_that_fails_ends_training_at_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(operation: str, path: str) -> None:
        if operation == "fsync" and "safetensors" in path and len(find_checkpoints(tmp_path)) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    class Steps(dt.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            saving = backup.manager._save
            if saving is not None and saving.shards is not None:  # until the thread has written or failed
                saving.shards.exception()
            steps.append((batch, len(find_checkpoints(tmp_path))))

    steps: list[tuple[int, int]] = []
    monkeypatch.setattr(disk, "observer", fail)
    model = dt.Sequential([dt.layers.Dense(1)])
    model.compile("sgd", "mse")
    backup = dt.callbacks.BackupAndRestore(tmp_path, save_freq=4)
    with pytest.raises(CheckpointError, match="safetensors: Input/output error.*as they were: 000001-step-4"):
        model.fit(np.ones((20, 2)), np.ones((20, 1)), batch_size=1, verbose=0, callbacks=[backup, Steps()])
    # The second save begins after batch 7; the writer's error ends training after the very next one.
    assert steps[-1] == (8, 1)


@pytest.mark.parametrize("accumulated", [None, 2])
def test_saves_come_after_so_many_batches_of_this_training(tmp_path: Path, accumulated: int | None) -> None:
    class Saves(dt.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if backup.manager.is_saving and (not after or after[-1] != batch):
                after.append(batch)
            backup.manager.wait()

    model = dt.Sequential([dt.layers.Dense(1)])
    model.compile(dt.optimizers.SGD(gradient_accumulation_steps=accumulated), "mse")
    for _ in range(2):  # the second time the optimizer has taken steps already
        after: list[int] = []
        backup = dt.callbacks.BackupAndRestore(tmp_path, save_freq=6)
        model.fit(np.ones((20, 2)), np.ones((20, 1)), batch_size=1, verbose=0, callbacks=[backup, Saves()])
        assert after == [6, 12, 18]


def test_resume_wants_a_place(tmp_path: Path) -> None:
    model = dt.Sequential([dt.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ArgumentError, match="BackupAndRestore"):
        model.fit(np.ones((8, 2)), np.ones((8, 1)), verbose=0, resume="auto")
    with pytest.raises(ArgumentError, match="save_freq"):
        fit(tmp_path, backup={"save_freq": 0})
