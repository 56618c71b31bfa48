"""`Trainer`: compile, fit, evaluate and predict, for whatever can be called on a batch.

The loop asks for batches, runs a step on each, and tells callbacks. It does not know whether other ranks exist: the
data adapter hands out this rank's slice of the global batch, collectives are nodes of the step's graph, and metric
states are the same on all ranks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from disttensor import context, data, distributed, ops, optimizers, tree
from disttensor.autodiff import GradientTape
from disttensor.callbacks import CallbackList
from disttensor.data import Batch, unpack_x_y_sample_weight
from disttensor.data.loader import as_tensors, shard_of
from disttensor.errors import ArgumentError, DataError
from disttensor.graph import function
from disttensor.metrics import Mean, Metric
from disttensor.random import global_seed
from disttensor.tensor import Tensor
from disttensor.training.compiled import CompiledLoss, CompiledMetrics
from disttensor.training.gather import in_batch_order

Logs = dict[str, Any]


class Trainer:
    """The training methods of `Model`. A step is `train_step` or `test_step`; override them or `compute_loss`."""

    built: bool
    history: Any
    optimizer: Any = None
    stop_training = False
    output_names: list[str] | None = None

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: Any = "auto",
        auto_scale_loss: bool = True,
    ) -> None:
        """Choose optimizer, loss and metrics.

        Parameters
        ----------
        optimizer : str or Optimizer, default "rmsprop"
        loss : str, Loss, callable, or list or dict of them for several outputs
        loss_weights : list or dict of float, optional
            Factors of the losses of several outputs.
        metrics, weighted_metrics : list of str, Metric or callable; nested by output for several outputs
            Only the latter take sample weights into account.
        run_eagerly : bool, default False
            Run operator by operator, with values to print and Python control flow; the results are the same.
        steps_per_execution, jit_compile, auto_scale_loss
            Accepted for compatibility and without effect: a step is always one run of a prepared plan.
        """
        self.optimizer = optimizers.get(optimizer)
        self.loss = loss
        self.run_eagerly = bool(run_eagerly)
        self._compiled_loss = CompiledLoss(loss, loss_weights, self.output_names) if loss is not None else None
        self._compiled_metrics = CompiledMetrics(metrics, weighted_metrics, self.output_names)
        self._loss_tracker = Mean(name="loss")
        self.stop_training = False
        self.compiled = True
        self._steps: dict[str, Callable[..., Any]] = {}

    # --- what a step is

    def train_step(self, data: Any) -> Logs:
        """One step: forward, loss, gradients, update, metrics. Traced once for each signature.

        Parameters
        ----------
        data : x, (x, y) or (x, y, sample_weight)
            This rank's slice of the batch, as tensors.

        Returns
        -------
        dict
            Results of the metrics by name.
        """
        x, y, sample_weight = unpack_x_y_sample_weight(data)
        with GradientTape() as tape:
            y_pred = self(x, training=True)  # type: ignore[operator]
            loss = self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)
            scaled = self.optimizer.scale_loss(loss)
        self._loss_tracker.update_state(loss, sample_weight=_rows_of(x))
        variables = self.trainable_weights  # type: ignore[attr-defined]
        if variables:
            self.optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))
        else:
            warnings.warn("the model has no trainable weights; nothing is learnt.", stacklevel=2)
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def test_step(self, data: Any) -> Logs:
        """One step of `evaluate`: forward, loss, metrics."""
        x, y, sample_weight = unpack_x_y_sample_weight(data)
        y_pred = self(x, training=False)  # type: ignore[operator]
        loss = self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=False)
        self._loss_tracker.update_state(loss, sample_weight=_rows_of(x))
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def predict_step(self, data: Any) -> Any:
        """One step of `predict`: the outputs for x."""
        return self(unpack_x_y_sample_weight(data)[0], training=False)  # type: ignore[operator]

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        """The compiled loss and the losses that layers added, for this rank's rows (a local mean).

        Raises
        ------
        ArgumentError
            If there is neither.
        """
        terms = []
        if self._compiled_loss is not None and y is not None:
            compiled = self._compiled_loss(y, y_pred, sample_weight)
            if compiled is not None:
                terms.append(compiled)
        terms.extend(ops.sum(loss) for loss in self.losses)  # type: ignore[attr-defined]
        if not terms:
            raise ArgumentError(
                "there is no loss: give `loss` to compile() and targets y to fit(), or call add_loss() in a layer."
            )
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Logs:
        """Update the compiled metrics and return all results."""
        if y is not None:
            self._compiled_metrics.update_state(y, y_pred, sample_weight)
        return self.get_metrics_result()

    def get_metrics_result(self) -> Logs:
        """The present results of all metrics by name."""
        logs: Logs = {}
        for name, metric in self._named_metrics():
            result = metric.result()
            logs.update(result if isinstance(result, dict) else {name: result})
        return logs

    def _named_metrics(self) -> list[tuple[str, Metric]]:
        compiled = getattr(self, "_compiled_metrics", None)
        own = super().metrics  # type: ignore[misc]
        named: list[tuple[str, Metric]] = []
        if compiled is not None:
            named.append(("loss", self._loss_tracker))
            if self._compiled_loss is not None:
                named.extend((m.name, m) for m in self._compiled_loss.trackers)
            named.extend((compiled.names[id(m)], m) for m in compiled.metrics)
        named.extend((m.name, m) for m in own if all(m is not other for _, other in named))
        return named

    @property
    def metrics(self) -> list[Metric]:
        """The loss tracker, the compiled metrics, and those of layers."""
        return [metric for _, metric in self._named_metrics()]

    @property
    def metrics_names(self) -> list[str]:
        """Their names, as they stand in logs."""
        return [name for name, _ in self._named_metrics()]

    def reset_metrics(self) -> None:
        """Start all metrics anew."""
        for metric in self.metrics:
            metric.reset_state()

    # --- running steps

    def _step(self, kind: str) -> Callable[[Batch], Any]:
        """A function that runs a train, test or predict step on a batch."""
        run = self._function(kind)

        def step(batch: Batch) -> Any:
            saved, context.state.shard = context.state.shard, shard_of(batch)
            try:
                return run(as_tensors(batch))
            finally:
                context.state.shard = saved

        return step

    @property
    def train_function(self) -> Callable[..., Any]:
        """What `fit` calls for each batch: `train_step` as a traced `Function`, or itself if it runs eagerly."""
        return self._function("train")

    def _function(self, kind: str) -> Callable[..., Any]:
        steps = self.__dict__.setdefault("_steps", {})
        if kind not in steps:
            method = getattr(self, f"{kind}_step")
            eager = bool(getattr(self, "run_eagerly", False))
            steps[kind] = method if eager else function(method, name=f"{type(self).__name__}.{kind}_step")
        return steps[kind]

    def _prepare(self, kind: str, batch: Batch) -> None:
        """Make every variable that a step uses, and give all ranks the values of rank 0."""
        if not self.built:
            with context.suspended():
                self(unpack_x_y_sample_weight(as_tensors(batch))[0], training=False)  # type: ignore[operator]
            self.reset_metrics()  # those of layers have seen a batch that does not count
        if kind == "train" and not self.optimizer.built:
            self.optimizer.build(self.trainable_weights)  # type: ignore[attr-defined]
        variables = list(self.variables)  # type: ignore[attr-defined]
        if kind == "train":
            variables += self.optimizer.variables
        distributed.broadcast_variables([*variables, *(v for m in self.metrics for v in m.variables)])

    # --- fit, evaluate, predict

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
    ) -> Any:
        """Train for a number of epochs.

        Parameters
        ----------
        x : array, nested structure of arrays, PyDataset, or iterable of batches
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

        Returns
        -------
        History
            `history.history` maps each metric's name to its values, one an epoch.

        Raises
        ------
        ArgumentError, DataError, ShapeError
            Before anything is trained, if arguments or data do not fit.
        """
        self._require_compiled("fit")
        if validation_split and validation_data is None:
            arrays = (x, y, sample_weight)
            (x, y, sample_weight), validation_data = data.train_validation_split(arrays, validation_split)
        adapter = self._adapter(
            x, y, sample_weight, batch_size, shuffle=shuffle, class_weight=class_weight, steps=steps_per_epoch,
            seed=global_seed() % (1 << 31),
        )  # fmt: skip
        watchers = CallbackList.make(
            callbacks, model=self, verbose=verbose, epochs=epochs, steps=adapter.num_batches, history=True
        )
        self.stop_training = False
        step = self._step("train")
        prepared = False
        evaluation: dict[str, Any] = {"steps": validation_steps, "batch_size": validation_batch_size or batch_size}
        watchers.on_train_begin()
        logs: Logs = {}
        for epoch in range(initial_epoch, epochs):
            self.reset_metrics()
            watchers.on_epoch_begin(epoch)
            logs = {}
            for number, batch in enumerate(adapter.epoch(epoch)):
                if not prepared:
                    self._prepare("train", batch)
                    prepared = True
                watchers.on_train_batch_begin(number)
                logs = _numbers(step(batch))
                watchers.on_train_batch_end(number, logs)
                if self._must_stop():
                    break
            else:
                if not logs:
                    raise DataError("the data gave no batch in this epoch; there is nothing to train on.")
            epoch_logs = dict(logs)
            if validation_data is not None and _validates(epoch, validation_freq):
                found = self._validate(validation_data, watchers, **evaluation)
                epoch_logs.update({f"val_{name}": value for name, value in found.items()})
            watchers.on_epoch_end(epoch, epoch_logs)
            logs = epoch_logs
            if self._must_stop():
                break
        self.optimizer.finalize_variable_values(self.trainable_variables)  # type: ignore[attr-defined]
        watchers.on_train_end(logs)
        return self.history

    def _validate(self, validation_data: Any, watchers: CallbackList, batch_size: Any, steps: Any) -> Logs:
        x, y, sample_weight = validation_data, None, None
        if isinstance(validation_data, (tuple, list)):
            x, y, sample_weight = unpack_x_y_sample_weight(validation_data)
        rows = batch_size if data.is_array_structure(x) else None
        return self.evaluate(x, y, rows, 0, sample_weight, steps, callbacks=watchers, return_dict=True)

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

        Parameters are those of `fit`.

        Returns
        -------
        float, list of float, or dict
            The loss if there are no metrics; the values in the order of `metrics_names`; or by name.
        """
        self._require_compiled("evaluate")
        adapter = self._adapter(x, y, sample_weight, batch_size, steps=steps)
        watchers = CallbackList.make(callbacks, model=self, verbose=verbose, epochs=1, steps=adapter.num_batches)
        step = self._step("test")
        logs: Logs = {}
        self.reset_metrics()
        watchers.on_test_begin()
        for number, batch in enumerate(adapter.epoch(0)):
            if number == 0 and watchers is not callbacks:  # within fit, the ranks have equal weights already
                self._prepare("test", batch)
            watchers.on_test_batch_begin(number)
            logs = _numbers(step(batch))
            watchers.on_test_batch_end(number, logs)
        watchers.on_test_end(logs)
        if return_dict:
            return logs
        values = [logs[name] for name in logs]
        return values[0] if len(values) == 1 else values

    def predict(
        self, x: Any, batch_size: int | None = None, verbose: Any = "auto", steps: int | None = None,
        callbacks: Any = None,
    ) -> Any:  # fmt: skip
        """The outputs for all rows of x, in order, on every rank.

        Returns
        -------
        numpy array, or nested structure of arrays
            Like the model's output.
        """
        adapter = self._adapter(x, None, None, batch_size, steps=steps)
        watchers = CallbackList.make(callbacks, model=self, verbose=verbose, epochs=1, steps=adapter.num_batches)
        step = self._step("predict")
        outputs: list[Any] = []
        totals: list[int] = []
        watchers.on_predict_begin()
        for number, batch in enumerate(adapter.epoch(0)):
            if number == 0:
                self._prepare("predict", batch)
            watchers.on_predict_batch_begin(number)
            found = tree.map_structure(lambda t: t.array, step(batch))
            outputs.append(found)
            totals.append(batch.total)
            watchers.on_predict_batch_end(number, {"outputs": found})
        watchers.on_predict_end()
        if not outputs:
            raise DataError("the data gave no batch; there is nothing to predict.")
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
        logs = _numbers(self._step(kind)(batch))
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
        group = distributed.communicator()
        return data.make_adapter(x, y, sample_weight, batch_size, rank=group.rank, size=group.size, **options)

    def _must_stop(self) -> bool:
        """Whether any rank wants to stop: then all do, after the same batch."""
        if distributed.size() > 1:
            wish = np.array([self.stop_training], np.uint8)
            self.stop_training = bool(distributed.communicator().all_reduce(wish, "max")[0])
        return self.stop_training

    def _require_compiled(self, method: str) -> None:
        if not getattr(self, "compiled", False):
            raise ArgumentError(f"call compile() before {method}().")


def _rows_of(x: Any) -> int:
    return next(iter(tree.flatten(x))).shape[0]


def _numbers(logs: Logs) -> Logs:
    return {name: float(value) for name, value in logs.items()}


def _validates(epoch: int, frequency: Any) -> bool:
    if isinstance(frequency, int):
        return (epoch + 1) % frequency == 0
    return epoch + 1 in frequency
