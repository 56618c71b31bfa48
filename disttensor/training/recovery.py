"""`Recovery`: what `fit` does to survive: it finds the checkpoint to go on from, saves new ones, and heeds signals.

What a rank wishes for itself (to stop, to save, to leave) becomes what all do after the same step: the wishes travel in
one small all-reduce.
"""

from __future__ import annotations

import itertools
import os
import random as python_random
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np

from disttensor import context, distributed, random
from disttensor.callbacks import BackupAndRestore, Callback, CallbackList
from disttensor.callbacks.callback import print_on_main
from disttensor.checkpoint import Checkpoint
from disttensor.data import Batch, DataAdapter, IterableAdapter
from disttensor.data.loader import as_tensors, shard_of
from disttensor.data.stored import StoredBatches
from disttensor.distributed import activity
from disttensor.distributed.consistency import DIGEST_BYTES, ReplicaCheck
from disttensor.errors import ArgumentError, SerializationError
from disttensor.graph.function import Function
from disttensor.saving.weights import named_variables
from disttensor.tensor import Variable
from disttensor.training.pace import LARGEST, Pace
from disttensor.training.signals import HIGHEST, INTERRUPT, LEAVE, Signals
from launch.exit_codes import INTERRUPTED, REQUEUE

_STATE = {
    "epoch": int, "batch": int, "logs": dict, "stop": bool, "seed": int, "host_random": list, "callbacks": list,
}  # fmt: skip
"""What a checkpoint of `fit` says beside its tensors, and as what."""
_MARGIN = 30.0
"""Seconds before a Slurm time limit, beside three times what a save took, at which training ends."""


@dataclass
class Start:
    """Where training begins, or an epoch goes on.

    `batches` are None if the epoch begins with its first one; `begun` says that callbacks know of the epoch already.
    """

    epoch: int
    batch: int = 0
    batches: Iterable[Batch] | None = None
    logs: dict[str, Any] = field(default_factory=dict)
    begun: bool = False
    prepared: bool = False
    finished: bool = False


class Recovery:
    """The survival of one `fit`; a context manager.

    With several ranks, Ctrl-C is heeded without a `BackupAndRestore`, too: whichever ranks it came to, all raise
    KeyboardInterrupt after the same step, so that they can go on together. A handler of the program's own stays.

    Parameters
    ----------
    model : Model
    callbacks : as given to `fit`
        With a `BackupAndRestore`, or nothing is saved.
    resume : "auto", None or False
        Whether to go on from a checkpoint if there is one; False starts anew.
    """

    def __init__(self, model: Any, callbacks: Any, resume: Any):
        given = callbacks.callbacks if isinstance(callbacks, CallbackList) else callbacks
        given = [given] if isinstance(given, Callback) else list(given or ())
        backups = [c for c in given if isinstance(c, BackupAndRestore)]
        if len(backups) > 1:
            raise ArgumentError("fit() takes one BackupAndRestore callback.")
        if resume not in ("auto", None, False):
            raise ArgumentError(f"resume must be 'auto', None or False, got {resume!r}.")
        if resume == "auto" and not backups:
            raise ArgumentError(
                "fit(resume='auto') needs a callback BackupAndRestore(folder), which keeps checkpoints."
            )
        self._model = model
        self._backup = backups[0] if backups else None
        self._resume = resume is not False
        self._found: Checkpoint | None = None
        self._state: Any = None
        self._watchers: CallbackList | None = None
        self._is_alone = self._backup is None and distributed.size() == 1
        self._signals = Signals()
        self._check: ReplicaCheck | None = None
        self._first_step = 0
        self._end: int | None = None
        self._leaving = False
        self._reserved = False

    def __enter__(self) -> Recovery:
        """Take the folder, find the newest whole checkpoint, and set the seed that the order of rows depends on."""
        if self._backup is not None:
            manager = self._backup.manager
            manager.open()
            self._interval = self._backup.interval()
            from launch.slurm import end_time

            self._end = end_time(os.environ) if distributed.is_main() else None
            try:
                self._found = manager.latest() if self._resume else None
                if self._found is not None:
                    self._state = _state_of(self._found)
                    random.set_global_seed(self._state["seed"])
            except BaseException:
                manager.close()
                raise
            self._signals.note()
        else:
            self._signals.note_interrupts()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._backup is None:
            self._signals.__exit__(*error)
        else:
            # This process may be about to end; the same signal again must not change how.
            self._signals.restore(ignored=[signal.SIGTERM, signal.SIGUSR1] if self._leaving else [])
            self._backup.manager.close()

    # --- going on

    def start(self, adapter: DataAdapter, watchers: CallbackList, initial_epoch: int, epochs: int) -> Start:
        """Restore everything from the checkpoint, if there is one; call it when callbacks know that training begins."""
        self._watchers = watchers
        if self._found is None:
            return Start(initial_epoch)
        model, state = self._model, self._state
        epoch, batch = state["epoch"], state["batch"]
        if not isinstance(adapter, IterableAdapter):  # a generator that is asked again makes its own random state
            _set_host_random(state["host_random"])
        finished = epoch >= epochs or (state["stop"] and batch == 0)
        batches = iter(()) if finished else iter(adapter.epoch(epoch, batch))
        first = next(batches, None)
        host_random = _host_random() if first is not None else state["host_random"]
        sample = first if first is not None else next(iter(adapter.epoch(0, 0)))
        model._prepare("train", sample)
        self._make_all_variables(sample)
        model.reset_metrics()
        if batch:
            watchers.on_epoch_begin(epoch)
        assert self._backup is not None
        self._backup.manager.restore(self._found, self._variables())
        watchers.set_state(state["callbacks"])
        model.stop_training = state["stop"]
        _set_host_random(host_random)
        place = (
            f"epoch {epoch + 1}, batch {batch + 1}" if first is not None else f"the end of epoch {epoch + bool(batch)}"
        )
        print_on_main(f"Going on from checkpoint {self._found.name}: {place}")
        if isinstance(batches, StoredBatches):  # made anew, to give several at once
            rest: Iterable[Batch] = adapter.epoch(epoch, batch)
        else:
            rest = itertools.chain([] if first is None else [first], batches)
        return Start(
            epoch, batch, iter(()) if state["stop"] else rest, state["logs"], begun=batch > 0, prepared=True,
            finished=finished,
        )  # fmt: skip

    def _make_all_variables(self, batch: Batch) -> None:
        """Let the step make what it makes in its first run, such as metrics; the values are restored afterwards."""
        run = self._model._function("train")
        saved, context.state.shard = context.state.shard, shard_of(batch)
        try:
            if isinstance(run, Function):
                run.plan(as_tensors(batch))
            else:
                run(as_tensors(batch))
        finally:
            context.state.shard = saved

    def _variables(self) -> dict[str, Variable]:
        model = self._model
        found = {f"model/{name}": v for name, v in named_variables(model).items()}
        found |= {f"optimizer/{i}": v for i, v in enumerate(model.optimizer.variables)}
        for name, metric in model._named_metrics():
            found |= {f"metrics/{name}/{i}": v for i, v in enumerate(metric.variables)}
        found["random/shared"] = random.shared_generator().state
        return found

    # --- after each step

    def after_steps(self, epoch: int, batch: int, logs: dict[str, Any], pace: Pace, done: int = 0) -> bool:
        """What all ranks do when `batch` batches of an epoch are done: compare weights, move a save on, save, leave.

        They also agree how many batches come before the next time.

        Parameters
        ----------
        done : int
            How many batches were run just now, if the pace may change by that; else 0.

        Returns
        -------
        bool
            Whether any rank wants to stop training.

        Raises
        ------
        CheckpointError
            On all ranks, if one could not write.
        DistributedError
            On all ranks, if their weights are no longer equal.
        SystemExit, KeyboardInterrupt
            On all ranks, if a signal came to any of them; after a checkpoint, with a `BackupAndRestore`.
        """
        model, backup = self._model, self._backup
        exponent = pace.wish(done) if done else 0
        if self._is_alone:
            pace.agree(exponent)
            return bool(model.stop_training)
        busy, failed = backup.manager.progress() if backup is not None else (False, False)
        saving = backup is not None and backup.manager.is_saving
        due = distributed.is_main() and self._is_due(batch == 0)
        wishes = np.array([model.stop_training, self._signals.asked, due, busy, failed, HIGHEST - exponent], np.uint8)
        if distributed.size() > 1:
            wishes = self._combine(wishes)
        stop, asked, due, busy, failed, hurry = wishes.tolist()
        pace.agree(HIGHEST - hurry, self._steps_left())
        model.stop_training = bool(stop)
        if backup is None:
            if asked:
                self._leave(asked)
            return model.stop_training
        if not self._reserved:
            backup.manager.reserve(self._variables())
            self._reserved = True
        if failed or (saving and not busy):
            backup.manager.poll()
            self._interval.note_cost(backup.manager.cost, backup.manager.latency)
        if due or asked:
            self._save(epoch, batch, logs, wait=bool(asked))
        if asked:
            self._leave(asked)
        return model.stop_training

    def _steps_left(self) -> int:
        """How many steps may come before weights are compared or saved because there were so many."""
        by_check = self._check and self._check.steps_left(activity.steps.value)
        by_interval = self._backup and self._interval.steps_left(activity.steps.value)
        return min(by_check or LARGEST, by_interval or LARGEST)

    def _combine(self, wishes: np.ndarray) -> np.ndarray:
        """The largest wishes of all ranks; the same message tells whether their weights are equal."""
        if self._check is None:
            model = self._model
            variables = [*model.trainable_weights, *model.optimizer.replicated_variables]
            # Parts of divided weights differ between ranks that have other parts.
            self._check = ReplicaCheck([v for v in variables if v.partition is None], start=self._first_step)
        step = activity.steps.value
        if not self._check.is_due(step):
            return distributed.communicator().all_reduce(wishes, "max")
        digest = self._check.message(step)
        combined = distributed.communicator().all_reduce(np.concatenate([wishes, digest]), "max")
        self._check.look_at(combined[-DIGEST_BYTES:], step)
        return combined[:-DIGEST_BYTES]

    def begin_counting(self) -> None:
        """Number the steps from those on that the optimizer has taken, and count those to the next save from here."""
        self._first_step = activity.steps.value = int(self._model.optimizer.innermost._iterations.memory)
        if self._backup is not None:
            self._interval.note_start(activity.steps.value)

    def _is_due(self, epoch_ended: bool) -> bool:
        if self._backup is None:
            return False
        if self._end is not None and time.time() > self._end - _MARGIN - 3 * self._backup.manager.latency:
            self._signals.asked = max(self._signals.asked, LEAVE)
        return self._interval.is_due(activity.steps.value, epoch_ended)

    def _save(self, epoch: int, batch: int, logs: dict[str, Any], wait: bool) -> None:
        assert self._backup is not None
        assert self._watchers is not None
        self._interval.note_start(activity.steps.value)
        state = {
            "epoch": epoch,
            "batch": batch,
            "logs": logs,
            "stop": bool(self._model.stop_training),
            "seed": random.global_seed(),
            "host_random": _host_random(),
            "callbacks": self._watchers.get_state(),
        }
        metrics = {name: float(value) for name, value in logs.items() if isinstance(value, Real)}
        self._backup.manager.save(int(self._model.optimizer.iterations), self._variables(), state, metrics, wait)

    def _leave(self, asked: int) -> None:
        if asked == INTERRUPT:
            self._signals.wait_for_own_interrupt()
        if self._backup is None:
            raise KeyboardInterrupt
        name = os.path.basename(self._backup.manager.checkpoints[-1])
        code = REQUEUE if asked == LEAVE else INTERRUPTED
        what = "a signal or the time limit ended training" if asked == LEAVE else "interrupted"
        print_on_main(f"{what}; checkpoint {name} is complete. The same command goes on from there.")
        if asked == INTERRUPT and hasattr(sys, "ps1"):
            raise KeyboardInterrupt
        self._leaving = True
        raise SystemExit(code)

    def finish(self) -> None:
        """Training came to its end: complete what is under way, and remove all if that was asked for."""
        if self._backup is not None:
            self._backup.manager.wait()
            if self._backup.delete_checkpoint:
                self._backup.manager.delete()


def _state_of(found: Checkpoint) -> Any:
    """What `fit` saved beside the tensors."""
    state = found.state()
    if not isinstance(state, dict) or any(type(state.get(name)) is not kind for name, kind in _STATE.items()):
        raise SerializationError(
            f"{found.path} was not saved by fit(): its state is not that of a training. Give BackupAndRestore a folder "
            "of its own."
        )
    return state


def _host_random() -> Any:
    """The state of Python's and numpy's global generators, in terms of what JSON knows."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, gauss_next = python_random.getstate()
    return [[name, keys.tolist(), position, has_gauss, gauss], [version, list(words), gauss_next]]  # type: ignore[union-attr]


def _set_host_random(state: Any) -> None:
    (name, keys, position, has_gauss, gauss), (version, words, gauss_next) = state
    np.random.set_state((name, np.array(keys, np.uint32), position, has_gauss, gauss))
    python_random.setstate((version, tuple(words), gauss_next))
