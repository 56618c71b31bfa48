"""How many steps go by between two looks at training, and that nothing but time depends on it."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

import disttensor as dt
from disttensor import distributed, layers
from disttensor.callbacks import Callback, LambdaCallback, ProgbarLogger
from disttensor.distributed import activity
from disttensor.distributed.communicator import SerialCommunicator
from disttensor.errors import OutOfRangeError
from disttensor.graph.plan import Plan
from disttensor.kernels import executor
from disttensor.random import shared_generator
from disttensor.training import pace
from disttensor.training.pace import LARGEST, Pace

rng = np.random.default_rng(0)
X, Y = (rng.normal(size=(403, n)).astype("float32") for n in (6, 3))
WORDS = rng.integers(0, 50, (403, 6))


class Watcher(Callback):
    """Sees every batch, and does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.train: list[int] = []
        self.test: list[int] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.train.append(batch)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self.test.append(batch)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often programs were run in a row."""
    found: list[int] = []
    execute = executor.execute

    def noted(program: int, count: int, times: int = 1, *limits: int) -> int:
        found.append(times)
        return execute(program, count, times, *limits)

    monkeypatch.setattr(executor, "execute", noted)
    return found


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_SECONDS", 1e6)  # so that what is run at once does not depend on the machine


def dropping(embeds: bool = False) -> dt.Sequential:
    first = [layers.Embedding(50, 4), layers.Flatten()] if embeds else []
    inputs = dt.Input((6,), dtype="int32" if embeds else "float32")
    return dt.Sequential([inputs, *first, layers.Dense(8, "relu"), layers.Dropout(0.3), layers.Dense(3)])


def train(model: dt.Model | None = None, compiled: dict[str, Any] | None = None, **options: Any) -> Any:
    dt.utils.set_random_seed(4)
    model = model or dropping()
    model.compile("adam", "mse", metrics=["mae"], **(compiled or {}))
    history = model.fit(X, Y, **{"batch_size": 8, "epochs": 3, "verbose": 0, "validation_split": 0.2, **options})
    variables = [*model.variables, *model.optimizer.variables]
    return history.history, [v.numpy().tobytes() for v in variables], shared_generator().state.numpy().tobytes()


def test_as_many_as_take_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(pace, "_SECONDS", 0.02)
    some, found = Pace(1), []
    for seconds in [0.001] * 8 + [0.1, 1e-9] + [1e-9] * 20:
        some.begin()
        now += seconds * some.steps
        some.agree(some.wish(some.steps))
        found.append(some.steps)
    assert found[:10] == [4, 16, 16, 16, 16, 16, 16, 16, 1, 4]
    assert found[-1] == LARGEST
    some.agree(5, 20)
    assert some.steps == 20
    some.agree(3, 20)
    assert some.steps == 8
    assert Pace(10).steps == 10


def test_ranks_look_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(SerialCommunicator):
        size = 2

    def exponent() -> int:
        some, now = Pace(1), [0.0]
        monkeypatch.setattr(time, "perf_counter", lambda: now[0])
        some.begin()
        now[0] = 0.25
        return some.wish(2)

    monkeypatch.setattr(pace, "_SECONDS", 0.13)
    assert exponent() == 0
    with distributed.use_communicator(Two()):
        assert exponent() == 2


@pytest.mark.parametrize("shuffle", [True, False, "batch"])
@pytest.mark.parametrize(
    "options", [{}, {"steps_per_epoch": 60}, {"sample_weight": np.linspace(0, 1, 403, dtype="float32")}]
)
def test_nothing_depends_on_it(runs: list[int], shuffle: bool | str, options: dict[str, Any]) -> None:
    watcher = Watcher()
    expected = train(callbacks=[watcher], shuffle=shuffle, **options)
    steps = options.get("steps_per_epoch", 41)
    assert watcher.train == [*range(steps)] * 3
    assert watcher.test == [*range(11)] * 3
    assert max(runs) == 1
    assert train(shuffle=shuffle, **options) == expected
    assert max(runs) >= 8


@pytest.mark.parametrize("at_once", [7, 64])
def test_executions_are_run_at_once(runs: list[int], at_once: int) -> None:
    watcher = Watcher()
    expected = train(callbacks=[Watcher()])
    assert train(compiled={"steps_per_execution": at_once}, callbacks=[watcher]) == expected
    assert watcher.train == [*range(at_once - 1, 40, at_once), 40] * 3
    assert max(runs) == min(at_once, 40)


def test_long_executions_are_interrupted_between_their_steps(runs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train()
    monkeypatch.setattr(pace, "_SECONDS", 0.0)  # no two steps are this short
    runs.clear()
    assert train(compiled={"steps_per_execution": 64}) == expected
    assert max(runs) == 1


def test_epochs_go_on_with_what_the_first_got_ready(runs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[Plan] = []
    repeats = Plan.repeats
    monkeypatch.setattr(Plan, "repeats", lambda self, fetch: prepared.append(self) or repeats(self, fetch))
    train(epochs=4, validation_split=0)
    assert len(prepared) == 1
    assert max(runs) == 49  # all but the first and the short one


def test_an_epoch_goes_on_in_stretches(runs: list[int], tmp_path: Path) -> None:
    def backup() -> dt.callbacks.BackupAndRestore:
        return dt.callbacks.BackupAndRestore(tmp_path, save_freq=30, delete_checkpoint=False)

    options: dict[str, Any] = {"epochs": 1, "validation_split": 0}
    expected = train(callbacks=[backup()], **options)
    runs.clear()
    assert train(callbacks=[backup()], resume="auto", **options) == expected
    assert max(runs) >= 8
    assert sum(runs) < 30


def test_eager_steps_are_seen_one_by_one() -> None:
    class Stops(dt.Sequential):
        def train_step(self, data: Any) -> Any:
            self.stop_training = int(self.optimizer.iterations) == 5
            return super().train_step(data)

    model = Stops(dropping().layers)
    train(model, {"run_eagerly": True}, epochs=1)
    assert int(model.optimizer.iterations) == 6


def test_whose_hooks_are_called_now_and_then() -> None:
    def see(*callbacks: Callback) -> tuple[bool, bool]:
        made = dt.callbacks.CallbackList(callbacks, None, {})
        return made.see_every_train_batch, made.see_every_test_batch

    class Own(ProgbarLogger):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            super().on_train_batch_end(batch, logs)

    class Older(Callback):
        def on_batch_end(self, batch: int, logs: Any = None) -> None:
            pass

    assert see() == see(ProgbarLogger(), dt.callbacks.EarlyStopping()) == (False, False)
    assert see(ProgbarLogger(), dt.callbacks.TerminateOnNaN()) == see(Own()) == see(Older()) == (True, False)
    assert see(LambdaCallback(on_train_batch_begin=print)) == (True, False)
    assert see(LambdaCallback(on_test_batch_end=print)) == (False, True)
    assert see(LambdaCallback(on_train_batch_end=Mock())) == (True, False)


def test_hooks_may_be_set_when_an_epoch_or_an_evaluation_begins() -> None:
    class Late(Watcher):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.on_train_batch_begin = lambda batch, logs=None: self.train.append(batch)  # type: ignore[method-assign]

        def on_test_begin(self, logs: Any = None) -> None:
            self.on_test_batch_begin = lambda batch, logs=None: self.test.append(batch)  # type: ignore[method-assign]

        on_train_batch_end = Callback.on_train_batch_end
        on_test_batch_end = Callback.on_test_batch_end

    late, model = Late(), dropping()
    train(model, callbacks=[late], epochs=1, validation_split=0)
    model.evaluate(X, Y, 8, verbose=0, callbacks=[late])
    assert late.train == late.test == [*range(51)]


def test_the_bar_hears_of_the_last_batch_of_each_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    monkeypatch.setattr(ProgbarLogger, "_step", lambda self, batch, logs: heard.append(batch))
    train(verbose=1, epochs=1, validation_split=0)
    assert heard[0] == 0
    assert heard[-1] == 50
    assert len(heard) < 12


def test_an_error_is_that_of_its_step(runs: list[int]) -> None:
    words = WORDS.copy()
    words[8 * 20 + 3, 2] = 99  # in the 21st batch
    model = dropping(embeds=True)
    model.compile("adam", "mse")
    with pytest.raises(OutOfRangeError, match="99"):
        model.fit(words, Y, 8, shuffle=False, verbose=0)
    assert max(runs) >= 8
    assert activity.steps.value == 21
    assert int(model.optimizer.iterations) == 20
    other = dropping(embeds=True)
    other.set_weights(model.get_weights())
    model.fit(WORDS, Y, 8, shuffle=False, verbose=0)  # it can go on
    assert any(a.tobytes() != b.tobytes() for a, b in zip(model.get_weights(), other.get_weights(), strict=True))


def test_a_signal_is_soon_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_SECONDS", 0.02)

    def press(epoch: int, logs: Any = None) -> None:
        if epoch == 3:  # all is compiled
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    # What a shell starts in the background ignores SIGINT, and so does what that starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(epochs=100_000, validation_split=0, callbacks=[LambdaCallback(on_epoch_begin=press)])
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("save_freq", ["epoch", 13])
def test_an_interrupted_run_goes_on_with_the_same_bits(tmp_path: Path, save_freq: Any) -> None:
    expected = train(callbacks=[Watcher()])

    def backup() -> Callback:
        return dt.callbacks.BackupAndRestore(tmp_path, save_freq=save_freq, delete_checkpoint=False)

    def interrupt(epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        train(callbacks=[backup(), LambdaCallback(on_epoch_begin=interrupt)])
    assert train(callbacks=[backup()]) == expected


def test_saves_are_at_their_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[int]) -> None:
    saved: list[int] = []
    save = dt.checkpoint.CheckpointManager.save

    def noted(self: Any, step: int, *arguments: Any, **options: Any) -> Any:
        saved.append(step)
        return save(self, step, *arguments, **options)

    monkeypatch.setattr(dt.checkpoint.CheckpointManager, "save", noted)
    train(callbacks=[dt.callbacks.BackupAndRestore(tmp_path, save_freq=37)], epochs=2)
    assert saved == [37, 74]
    assert max(runs) >= 8
