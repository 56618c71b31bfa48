"""`Trainer`: compile, and what a step of training, evaluation and prediction is.

The loops over data that run these steps are in `disttensor.training.loop`.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Callable
from typing import Any

from disttensor import context, distributed, dtypes, ops, optimizers, tree
from disttensor.autodiff import GradientTape
from disttensor.data import Batch, unpack_x_y_sample_weight
from disttensor.data.loader import as_tensors
from disttensor.dtype_policies import DTypePolicy
from disttensor.errors import ArgumentError
from disttensor.graph import function
from disttensor.metrics import Mean, Metric
from disttensor.tensor import Tensor
from disttensor.training import fingerprint
from disttensor.training.compiled import CompiledLoss, CompiledMetrics
from disttensor.training.loop import Logs, Loops
from disttensor.training.step import Step


class Trainer(Loops):
    """The training methods of `Model`. A step is `train_step` or `test_step`; override them or `compute_loss`."""

    output_names: list[str] | None = None
    dtype_policy: DTypePolicy

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
            A callable of (y_true, y_pred) returns a value for each row, or their mean. (Each rank has rows of its own;
            for a sum over those of the batch let a `Loss` with reduction="sum" return a value for each row.)
        loss_weights : list or dict of float, optional
            Factors of the losses of several outputs.
        metrics, weighted_metrics : list of str, Metric or callable; nested by output for several outputs
            Only the latter take sample weights into account.
        run_eagerly : bool, default False
            Run operator by operator, with values to print and Python control flow; the results are the same.
        steps_per_execution : int, default 1
            How many batches `fit`, `evaluate` and `predict` run before they tell callbacks and look at
            `stop_training`. A step is one run of a prepared plan in any case, so what is saved is the work of callbacks
            and, with several processes, the question whether all go on. The batch hooks are called once for so many
            batches: those that begin with the number of the first, those that end with the number of the last and the
            metrics at that point. The last batches of an epoch may be fewer.
        jit_compile
            Accepted for compatibility and without effect: steps are always compiled, unless they run eagerly.
        auto_scale_loss : bool, default True
            Whether the optimizer of a model with the policy "mixed_float16" is wrapped in a `LossScaleOptimizer`.

        Raises
        ------
        ArgumentError
            If `steps_per_execution` is not a positive int; nothing is changed then.
        """
        if type(steps_per_execution) is not int or steps_per_execution < 1:
            raise ArgumentError(f"compile(): steps_per_execution must be a positive int, got {steps_per_execution!r}.")
        self._compile_arguments = {
            "loss": loss,
            "loss_weights": loss_weights,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
            "run_eagerly": run_eagerly,
            "steps_per_execution": steps_per_execution,
        }
        self.optimizer = optimizers.get(optimizer)
        scales = isinstance(self.optimizer, optimizers.LossScaleOptimizer) or self.optimizer is None
        if auto_scale_loss and self.dtype_policy.name == "mixed_float16" and not scales:
            self.optimizer = optimizers.LossScaleOptimizer(self.optimizer, name="loss_scale_optimizer")
        self.loss = loss
        self.run_eagerly = bool(run_eagerly)
        self._compiled_loss = CompiledLoss(loss, loss_weights, self.output_names) if loss is not None else None
        self._compiled_metrics = CompiledMetrics(metrics, weighted_metrics, self.output_names)
        self._loss_tracker = Mean(name="loss")
        self.steps_per_execution = steps_per_execution
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
            Results of the metrics by name. A scalar computed from the batch, such as the loss, is taken for the mean
            over this rank's rows; the logs have that over the rows of all ranks.
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

    def _step(self, kind: str, counter: ctypes.c_int64 | None = None) -> Step:
        """What runs train, test or predict steps on batches, and counts them."""
        return Step(self._function(kind), kind != "predict", counter)

    @property
    def train_function(self) -> Callable[..., Any]:
        """What `fit` calls for each batch: `train_step` as a traced `Function` unless it runs eagerly."""
        return self._function("train")

    def _function(self, kind: str) -> Callable[..., Any]:
        steps = self.__dict__.setdefault("_steps", {})
        if kind not in steps:
            method = getattr(self, f"{kind}_step")
            if kind != "predict":
                method = _of_all_ranks(method)
            eager = bool(getattr(self, "run_eagerly", False))
            steps[kind] = method if eager else function(method, name=f"{type(self).__name__}.{kind}_step")
        return steps[kind]

    def _prepare(self, kind: str, batch: Batch) -> None:
        """Make every variable that a step uses, and give all ranks the values of rank 0, if all have the same ones."""
        if not self.built:
            with context.suspended():
                self(unpack_x_y_sample_weight(as_tensors(batch))[0], training=False)  # type: ignore[operator]
            self.reset_metrics()  # those of layers have seen a batch that does not count
        variables = [v for m in self.metrics for v in m.variables]
        is_new = kind == "train" and not self.optimizer.built
        if kind == "train" and not is_new:
            variables += self.optimizer.variables
        fingerprint.agree_on_model(self, kind, batch, variables)
        if is_new:
            self.optimizer.build(self.trainable_weights)  # type: ignore[attr-defined]
            distributed.broadcast_variables(self.optimizer.variables)


def _of_all_ranks(step: Callable[[Any], Logs]) -> Callable[[Any], Logs]:
    """A step whose logs are means over the global batch where its own are means over this rank's rows."""

    def mean(value: Any) -> Any:
        is_local = isinstance(value, Tensor) and value.shard is not None and not value.shape
        return distributed.sync_mean(value) if is_local and dtypes.is_inexact(value.dtype) else value

    return functools.wraps(step)(lambda data: {name: mean(value) for name, value in step(data).items()})


def _rows_of(x: Any) -> int:
    return next(iter(tree.flatten(x))).shape[0]
