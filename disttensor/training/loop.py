"""`Loops`: fit, evaluate, predict and their one-batch forms.

The loop asks for batches, runs a step on each, and tells callbacks. It does not know whether other ranks exist: the
data adapter hands out this rank's slice of the global batch, collectives are nodes of the step's graph, and metric
states are the same on all ranks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from disttensor import context, data, distributed, tree
from disttensor.callbacks import CallbackList
from disttensor.data import Batch, unpack_x_y_sample_weight
from disttensor.data.stored import Group, take
from disttensor.distributed import activity
from disttensor.distributed.finite import with_weights
from disttensor.errors import ArgumentError, DataError, NonFiniteError
from disttensor.random import global_seed
from disttensor.training import fingerprint
from disttensor.training.gather import in_batch_order
from disttensor.training.pace import Pace
from disttensor.training.recovery import Recovery, Start
from disttensor.training.signals import Signals
from disttensor.training.step import Step

Logs = dict[str, Any]


class Loops:
    """The methods of `Trainer` that go over data; what a step is, `Trainer` says."""

    built: bool
    history: Any
    optimizer: Any = None
    run_eagerly = False
    stop_training = False
    steps_per_execution = 1
    _step: Callable[..., Step]
    _prepare: Callable[[str, Batch], None]
    reset_metrics: Callable[[], None]

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool | str = True,
        class_weight: dict[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: Any = 1,
        resume: Any = None,
    ) -> Any:
        """Train for a number of epochs.

        Parameters
        ----------
        x : array, nested structure of arrays, Dataset, PyDataset, or iterable of batches
            See `disttensor.data.make_adapter`.
        y, sample_weight : array or nested structure of arrays, optional
        batch_size : int, default 32
            Rows of the *global* batch, for any number of processes.
        epochs : int, default 1
            The epoch to stop at, counted from `initial_epoch`'s zero.
        verbose : {"auto", 0, 1, 2}, default "auto"
            Silent, a progress bar, or a line an epoch.
        callbacks : list of Callback, optional
        validation_split : float, default 0
            The share of rows, taken from the end, to validate on.
        validation_data : (x, y), (x, y, sample_weight), PyDataset or iterable, optional
        shuffle : bool or "batch", default True
        class_weight : dict of int to float, optional
        initial_epoch : int, default 0
        steps_per_epoch, validation_steps : int, optional
            Batches in an epoch or a validation; default all there are.
        validation_batch_size : int, default batch_size
        validation_freq : int or collection of int, default 1
            Validate after every so many epochs, or after the epochs listed (counted from 1).
        resume : "auto", None or False, default None
            With a callback `BackupAndRestore`: go on from its newest whole checkpoint if there is one, or with False
            start anew. "auto" requires such a callback.

        Returns
        -------
        History
            `history.history` maps each metric's name to its values, one an epoch.

        Raises
        ------
        ArgumentError, DataError, ShapeError
            Before anything is trained, if arguments or data do not fit.
        DistributedError
            On all ranks, before anything is trained, if they were given different things; later if their weights are no
            longer equal (see `config.consistency_interval`).
        KeyboardInterrupt
            On Ctrl-C; with several ranks on all of them, after the same step.
        """
        self._require_compiled("fit")
        fingerprint.require_same_call(
            self, "fit()", epochs=epochs, initial_epoch=initial_epoch, steps_per_epoch=steps_per_epoch,
            batch_size=batch_size, shuffle=shuffle, class_weight=class_weight, validation_split=validation_split,
            validation_data=validation_data is not None, validation_steps=validation_steps,
            validation_batch_size=validation_batch_size, validation_freq=validation_freq, resume=resume,
            callbacks=callbacks,
        )  # fmt: skip
        if validation_split and validation_data is None:
            arrays = (x, y, sample_weight)
            (x, y, sample_weight), validation_data = data.train_validation_split(arrays, validation_split)
        evaluation: dict[str, Any] = {"steps": validation_steps, "batch_size": validation_batch_size or batch_size}
        with Recovery(self, callbacks, resume) as recovery:
            adapter = self._adapter(
                x, y, sample_weight, batch_size, shuffle=shuffle, class_weight=class_weight, steps=steps_per_epoch,
                seed=global_seed() % (1 << 31),
            )  # fmt: skip
            watchers = CallbackList.make(
                callbacks, model=self, verbose=verbose, epochs=epochs, steps=adapter.num_batches, history=True
            )
            fingerprint.require_same_data("the training data", adapter)
            self.stop_training = False
            watchers.on_train_begin()
            start = recovery.start(adapter, watchers, initial_epoch, epochs)

            def validate(epoch: int) -> Logs:
                if validation_data is None or not _validates(epoch, validation_freq):
                    return {}
                return self._validate(validation_data, watchers, **evaluation)

            try:
                logs = self._train(adapter, watchers, recovery, start, epochs, validate)
            except NonFiniteError as error:
                raise with_weights(error, self.trainable_variables) from None  # type: ignore[attr-defined]
            finally:
                activity.enter(activity.OTHER)
                context.state.checks_gradients = False  # set by callbacks, as is the observer
                activity.observe(None)
            self.optimizer.finalize_variable_values(self.trainable_variables)  # type: ignore[attr-defined]
            watchers.on_train_end(logs)
            recovery.finish()
        return self.history

    def _train(
        self,
        adapter: data.DataAdapter,
        watchers: CallbackList,
        recovery: Recovery,
        start: Start,
        epochs: int,
        validate: Callable[[int], Logs],
    ) -> Logs:
        """The epochs, from a start on; returns the last logs."""
        step, pace = self._step("train", activity.steps), Pace(self.steps_per_execution)
        prepared, logs = start.prepared, start.logs
        recovery.begin_counting()
        for epoch in range(start.epoch, start.epoch if start.finished else epochs):
            if not start.begun:
                self.reset_metrics()
                watchers.on_epoch_begin(epoch)
                logs = {}
            alone = not watchers.see_every_train_batch  # not before: hooks may be set when training or an epoch begins
            batches = adapter.epoch(epoch) if start.batches is None else start.batches
            number, shared = start.batch, False
            for batch, execution in _executions(batches, pace):
                if not prepared:
                    self._prepare("train", batch)
                    recovery.begin_counting()  # anew, from rank 0's number of steps, which all have now
                    prepared = True
                if not shared:  # callbacks, or who read a checkpoint, may have written to variables
                    self.optimizer.share_variables(wanted=not self.run_eagerly)
                    shared = True
                activity.enter(activity.IN_CALLBACKS)
                watchers.on_train_batch_begin(number)
                activity.enter(activity.COMPUTING)
                logs, done = step.run(execution)
                number += done
                activity.enter(activity.IN_CALLBACKS)
                watchers.on_train_batch_end(number - 1, logs)
                if recovery.after_steps(epoch, number, logs, pace, done if alone and step.is_steady else 0):
                    break
            else:
                if not logs:
                    raise DataError("the data gave no batch in this epoch; there is nothing to train on.")
            logs = logs | {f"val_{name}": value for name, value in validate(epoch).items()}
            activity.enter(activity.IN_CALLBACKS)
            watchers.on_epoch_end(epoch, logs)
            start = Start(epoch + 1)
            if recovery.after_steps(epoch + 1, 0, logs, pace):
                break
        return logs

    def _validate(self, validation_data: Any, watchers: CallbackList, batch_size: Any, steps: Any) -> Logs:
        former = activity.enter(activity.VALIDATING)
        x, y, sample_weight = validation_data, None, None
        if isinstance(validation_data, (tuple, list)):
            x, y, sample_weight = unpack_x_y_sample_weight(validation_data)
        rows = batch_size if data.is_array_structure(x) else None
        logs: Logs = self.evaluate(x, y, rows, 0, sample_weight, steps, callbacks=watchers, return_dict=True)
        activity.enter(former)
        return logs

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """Loss and metrics on data, exact for any number of processes.

        Parameters are those of `fit`, and Ctrl-C does the same.

        Returns
        -------
        float, list of float, or dict
            The loss if there are no metrics; the values in the order of `metrics_names`; or by name.
        """
        self._require_compiled("evaluate")
        adapter = self._adapter(x, y, sample_weight, batch_size, steps=steps)
        fingerprint.require_same_data("the data of evaluate()", adapter)
        watchers = CallbackList.make(callbacks, model=self, verbose=verbose, epochs=1, steps=adapter.num_batches)
        step, pace = self._step("test"), Pace(self.steps_per_execution)
        logs: Logs = {}
        self.reset_metrics()
        is_within_fit = watchers is callbacks  # then the ranks have equal weights already, and fit heeds signals
        with Signals() as signals:
            if not is_within_fit:
                signals.note_interrupts()
            watchers.on_test_begin()
            number, alone = 0, not watchers.see_every_test_batch
            for batch, execution in _executions(adapter.epoch(0), pace):
                if number == 0 and not is_within_fit:
                    self._prepare("test", batch)
                watchers.on_test_batch_begin(number)
                logs, done = step.run(execution)
                number += done
                watchers.on_test_batch_end(number - 1, logs)
                exponent = pace.wish(done) if alone and step.is_steady else 0
                pace.agree(exponent if is_within_fit else signals.look(exponent))
            watchers.on_test_end(logs)
        if return_dict:
            return logs
        values = [logs[name] for name in logs]
        return values[0] if len(values) == 1 else values

    def predict(
        self, x: Any, batch_size: int | None = None, verbose: Any = "auto", steps: int | None = None,
        callbacks: Any = None,
    ) -> Any:  # fmt: skip
        """The outputs for all rows of x, in order, on every rank. Ctrl-C does what it does in `fit`.

        Returns
        -------
        numpy array, or nested structure of arrays
            Like the model's output.
        """
        adapter = self._adapter(x, None, None, batch_size, steps=steps)
        fingerprint.require_same_data("the data of predict()", adapter)
        watchers = CallbackList.make(callbacks, model=self, verbose=verbose, epochs=1, steps=adapter.num_batches)
        step = self._step("predict")
        outputs: list[Any] = []
        totals: list[int] = []
        looks, seen = Pace(1), 0  # ranks need not wait for one another before the end but to look at signals
        with Signals() as signals:
            signals.note_interrupts()
            watchers.on_predict_begin()
            looks.begin()
            for batch, execution in _executions(adapter.epoch(0), Pace(self.steps_per_execution)):
                if not outputs:
                    self._prepare("predict", batch)
                watchers.on_predict_batch_begin(len(outputs))
                done = len(outputs)
                for b in itertools.chain.from_iterable(execution):
                    outputs.append(tree.map_structure(lambda t: t.array, step(b)))
                    totals.append(b.total)
                joined = tree.map_structure(_joined, *outputs[done:])
                watchers.on_predict_batch_end(len(outputs) - 1, {"outputs": joined})
                if len(outputs) - seen >= looks.steps:
                    looks.agree(signals.look(looks.wish(len(outputs) - seen)))
                    seen = len(outputs)
                    looks.begin()
            watchers.on_predict_end()
            if not outputs:
                raise DataError("the data gave no batch; there is nothing to predict.")
            signals.look(0)
            return tree.map_structure(lambda *parts: in_batch_order(parts, totals), *outputs)

    # --- one batch

    def train_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, class_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """One training step on one global batch, given whole on every rank; its loss and metrics."""
        self._require_compiled("train_on_batch")
        return self._on_batch("train", x, y, sample_weight, class_weight, return_dict)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False) -> Any:
        """Loss and metrics on one global batch."""
        self._require_compiled("test_on_batch")
        return self._on_batch("test", x, y, sample_weight, None, return_dict)

    def predict_on_batch(self, x: Any) -> Any:
        """The outputs for one global batch, as arrays."""
        batch = self._single_batch(x, None, None, None)
        self._prepare("predict", batch)
        outputs = self._step("predict")(batch)
        return tree.map_structure(lambda t: in_batch_order([t.array], [batch.total]), outputs)

    def _on_batch(self, kind: str, x: Any, y: Any, sample_weight: Any, class_weight: Any, return_dict: bool) -> Any:
        batch = self._single_batch(x, y, sample_weight, class_weight)
        if not self.built or (kind == "train" and not self.optimizer.built):
            self._prepare(kind, batch)
        self.reset_metrics()
        logs = self._step(kind)(batch)
        if return_dict:
            return logs
        values = list(logs.values())
        return values[0] if len(values) == 1 else values

    def _single_batch(self, x: Any, y: Any, sample_weight: Any, class_weight: Any) -> Batch:
        rows = len(tree.flatten(x)[0])
        adapter = self._adapter(x, y, sample_weight, max(rows, 1), class_weight=class_weight)
        return next(iter(adapter.epoch(0)))

    # --- helpers

    def _adapter(self, x: Any, y: Any, sample_weight: Any, batch_size: int | None, **options: Any) -> data.DataAdapter:
        group = distributed.data_group()
        return data.make_adapter(x, y, sample_weight, batch_size, rank=group.rank, size=group.size, **options)

    def _require_compiled(self, method: str) -> None:
        if not getattr(self, "compiled", False):
            raise ArgumentError(f"call compile() before {method}().")


def _executions(batches: Iterable[Batch], pace: Pace) -> Iterator[tuple[Batch, Iterable[Group]]]:
    """Group batches by `pace.steps`, the last group perhaps shorter.

    Yields
    ------
    tuple
        A group's first batch, and all its batches as `take` gives them, which must be used up. Later ones are asked for
        when those before are done, so that whatever goes wrong there happens after their steps.
    """
    source = iter(batches)

    def read(most: int) -> Group:
        former = activity.enter(activity.READING)
        some = take(source, most)
        activity.enter(former)
        return some

    def following(left: int) -> Iterator[Group]:
        while left and (some := read(left)):
            yield some
            left -= len(some)

    try:
        while first := read(pace.steps):
            pace.begin()
            yield first[0], itertools.chain((first,), following(pace.steps - len(first)))
    finally:
        if hasattr(source, "close"):
            source.close()  # ends the threads that read ahead


def _validates(epoch: int, frequency: Any) -> bool:
    if isinstance(frequency, int):
        return (epoch + 1) % frequency == 0
    return epoch + 1 in frequency


def _joined(*parts: np.ndarray) -> np.ndarray:
    """What several batches of one execution gave, for callbacks."""
    return parts[0] if len(parts) == 1 else np.concatenate([np.atleast_1d(part) for part in parts])
