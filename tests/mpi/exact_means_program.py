"""What every rank of `test_exact_means` runs: results on slices of a batch against those of the whole batch.

The whole batch is computed by each rank for itself, without shards, under the communicator of one rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from disttensor import distributed, losses, metrics, ops, optimizers
from disttensor.autodiff import GradientTape
from disttensor.context import Shard
from disttensor.distributed.collectives import sync_mean
from disttensor.distributed.communicator import SerialCommunicator
from disttensor.errors import ShapeError
from disttensor.graph import function
from disttensor.tensor import Tensor, Variable, convert_to_tensor

comm = distributed.communicator()
assert comm.size == 3
ROWS, STEPS, CLASSES = 8, 4, 5
# Where each rank's slice ends: uneven, one empty in the middle, all rows on the last rank.
SPLITS = ([3, 4, 8], [5, 5, 8], [0, 0, 8])
rng = np.random.default_rng(7)
LABELS = rng.integers(0, CLASSES, (ROWS, STEPS))
SCORES = rng.normal(size=(ROWS, STEPS, CLASSES)).astype(np.float32)
REALS = rng.normal(size=(ROWS, STEPS, CLASSES)).astype(np.float32)
WEIGHTS = rng.uniform(0.5, 2.0, (ROWS, STEPS)).astype(np.float32)
BITS = (REALS > 0).astype(np.float32)
# Not all labels are 0 or 1, but only the last rank sees that.
HALVES = np.concatenate([BITS[:-1], BITS[-1:] / 2])
MASK = rng.integers(0, 2, (ROWS, STEPS)).astype(bool)


def alone(compute: Callable[[], Any]) -> Any:
    """What one process without any others computes."""
    with distributed.use_communicator(SerialCommunicator()):
        return compute()


def mine(array: np.ndarray, split: list[int], mask: bool = False) -> Tensor:
    """This rank's slice of a global batch."""
    begin, end = [0, *split][comm.rank], split[comm.rank]
    tensor = convert_to_tensor(array[begin:end])
    tensor.shard = Shard(end - begin, ROWS, begin)
    if mask:
        tensor._keras_mask = mine(MASK, split)
    return tensor


def whole(array: np.ndarray, mask: bool = False) -> Tensor:
    tensor = convert_to_tensor(array)
    if mask:
        tensor._keras_mask = convert_to_tensor(MASK)
    return tensor


def close(got: Any, want: Any, what: Any) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=1e-6, atol=1e-6, err_msg=str(what))


def loss_and_gradient(loss: Any, y_true: Tensor, y_pred: Tensor, weight: Tensor | None, scale: Variable) -> Any:
    mask = y_pred._keras_mask
    with GradientTape() as tape:
        scaled = y_pred * scale
        scaled._keras_mask = mask
        value = loss(y_true, scaled, weight)
    return sync_mean(value), sync_mean(tape.gradient(value, scale))


def check_losses() -> None:
    scale = Variable(1.5)
    cases = [
        (losses.MeanSquaredError, {}, REALS),
        (losses.SquaredHinge, {}, BITS),
        (losses.Hinge, {}, HALVES),
        (losses.SparseCategoricalCrossentropy, {"from_logits": True}, LABELS),
        (losses.SparseCategoricalCrossentropy, {"from_logits": True, "ignore_class": 2}, LABELS),
    ]
    for cls, arguments, y_true in cases:
        for reduction in ("sum_over_batch_size", "sum", "mean", "mean_with_sample_weight"):
            loss = cls(reduction=reduction, **arguments)
            for masked in (False, True):
                for weights in (None, WEIGHTS, WEIGHTS[:, 0]):
                    full = None if weights is None else convert_to_tensor(weights)
                    want = alone(
                        lambda: loss_and_gradient(loss, whole(y_true), whole(SCORES, masked), full, scale)  # noqa: B023
                    )
                    for split in SPLITS:
                        part = None if weights is None else mine(weights, split)
                        got = loss_and_gradient(loss, mine(y_true, split), mine(SCORES, split, masked), part, scale)
                        close(got, want, (cls.__name__, arguments, reduction, masked, weights is not None, split))


def check_traced_losses() -> None:
    """The rows of the global batch are an input of the plan: one plan serves batches of other totals."""
    loss = losses.MeanSquaredError(reduction="sum")
    traced = function(lambda y_true, y_pred: sync_mean(loss(y_true, y_pred)))
    local = np.ones((2, 1), np.float32)
    for others in (2, 5):
        rows = 2 if comm.rank == 0 else others
        total = 2 + 2 * others
        x = convert_to_tensor(np.ones((rows, 1), np.float32) if comm.rank else local)
        x.shard = Shard(rows, total, 0)
        close(traced(np.zeros(x.shape, np.float32), x), float(total), others)
    assert traced.trace_count == (1 if comm.rank == 0 else 2), traced.trace_count


def check_metrics() -> None:
    one_hot = np.eye(CLASSES, dtype=np.float32)[LABELS[:, 0]]
    probabilities = (np.exp(SCORES) / np.exp(SCORES).sum(-1, keepdims=True))[:, 0]
    cases = [
        (metrics.MeanSquaredError, REALS, SCORES),
        (metrics.SparseCategoricalAccuracy, LABELS, SCORES),
        (metrics.Precision, one_hot, probabilities),
        (metrics.AUC, one_hot, probabilities),
        (metrics.R2Score, REALS[:, 0], SCORES[:, 0]),
        (metrics.F1Score, one_hot, probabilities),
    ]
    for cls, y_true, y_pred in cases:
        for masked in (False, True) if y_pred is SCORES else (False,):
            for weights in (None, WEIGHTS[:, 0]):
                reference, parts = cls(), [cls(), cls()]
                eager, traced = parts[0].update_state, function(parts[1].update_state)
                for split in SPLITS:
                    full = None if weights is None else convert_to_tensor(weights)
                    alone(lambda: reference.update_state(whole(y_true), whole(y_pred, masked), full))  # noqa: B023
                    part = None if weights is None else mine(weights, split)
                    eager(mine(y_true, split), mine(y_pred, split, masked), part)
                    if not masked:  # a mask does not travel through the arguments of a traced function
                        traced(mine(y_true, split), mine(y_pred, split), part)
                for metric in parts[: 1 if masked else 2]:
                    close(metric.result(), reference.result(), (cls.__name__, masked, weights is not None))
                    for a, b in zip(metric.variables, reference.variables, strict=True):
                        close(a, b, (cls.__name__, a.name))


def check_metric_of_a_loss() -> None:
    """The mean of a loss over batches: each rank adds its local mean, weighted by its rows."""
    loss, tracker = losses.MeanSquaredError(), metrics.Mean()
    for split in SPLITS:
        y_pred = mine(SCORES, split)
        tracker.update_state(loss(mine(REALS, split), y_pred), sample_weight=y_pred.shape[0])
    close(tracker.result(), np.mean((REALS - SCORES) ** 2), "tracker")
    close(tracker.count, ROWS * len(SPLITS), "rows")


def check_metric_of_a_loss_without_weights() -> None:
    """As in training steps written for Keras: a batch counts as one value, however many ranks have rows of it."""
    loss, others = losses.MeanSquaredError(), [0.5, -2.0, 3.0]
    eager, inner = metrics.Mean(), metrics.Mean()
    traced = function(lambda y_true, y_pred: inner.update_state(loss(y_true, y_pred)))
    for split, other in zip(SPLITS, others, strict=True):
        eager.update_state(loss(mine(REALS, split), mine(SCORES, split)))
        traced(mine(REALS, split), mine(SCORES, split))
        for tracker in (eager, inner):
            tracker.update_state(other)  # not of a batch: the same on all ranks, counted once
    for tracker in (eager, inner):
        close(tracker.result(), np.mean([np.mean((REALS - SCORES) ** 2)] * 3 + others), "tracker without weights")
        close(tracker.count, 2 * len(SPLITS), "batches and others")


def check_metric_within_a_metric() -> None:
    class Outer(metrics.Metric):
        def __init__(self) -> None:
            super().__init__(name="outer")
            self.inner = metrics.Sum()

        def update_state(self, values: Any) -> None:
            self.inner.update_state(values)

        def result(self) -> Any:
            return self.inner.result()

    outer = Outer()
    for split in SPLITS:
        outer.update_state(mine(WEIGHTS, split))
    outer.update_state(convert_to_tensor([1.0]))  # not a slice: the same on all ranks, counted once
    close(outer.result(), WEIGHTS.sum() * len(SPLITS) + 1.0, "outer")


def check_nothing_comes_from_a_rank_without_rows() -> None:
    class SumOfMeans(metrics.Metric):
        def __init__(self) -> None:
            super().__init__(name="sum_of_means")
            self.total = self.add_variable((), "zeros", name="total")

        def update_state(self, values: Any) -> None:
            self.total.assign_add(ops.sum(values) / values.shape[0] if values.shape[0] else np.nan)

        def result(self) -> Any:
            return self.total.value

    close(SumOfMeans()(mine(WEIGHTS, [0, 0, 8])), WEIGHTS.sum() / ROWS, "without rows")


def check_a_failed_update_changes_nothing() -> None:
    metric = metrics.Sum()
    metric.update_state(mine(WEIGHTS, SPLITS[0]))
    try:
        metric.update_state(mine(WEIGHTS, SPLITS[0]), sample_weight=mine(REALS, SPLITS[0]))
    except ShapeError:
        close(metric.result(), WEIGHTS.sum(), "failed update")
    else:
        raise AssertionError("no error")


def check_optimizer() -> None:
    """Ranks that start with different weights and see slices of the batch end where one process does."""
    start = np.linspace(-1, 1, CLASSES).astype(np.float32)
    loss = losses.MeanSquaredError()

    def train(weight: Variable, batch: Callable[[np.ndarray, int], Tensor], wrap: Callable[[Any], Any]) -> np.ndarray:
        optimizer = optimizers.Adam(0.1, global_clipnorm=0.5, weight_decay=0.01)
        optimizer.build([weight])

        def step(x: Tensor, y: Tensor) -> None:
            with GradientTape() as tape:
                value = loss(y, x * weight)
            optimizer.apply([tape.gradient(value, weight)], [weight])

        step = wrap(step)
        for i in range(6):
            step(batch(SCORES, i), batch(REALS, i))
        return weight.numpy()

    want = alone(lambda: train(Variable(start), lambda array, _: convert_to_tensor(array), function))
    for wrap in (function, lambda f: f):
        weight = Variable(start + comm.rank)
        got = train(weight, lambda array, i: mine(array, SPLITS[i % len(SPLITS)]), wrap)
        close(got, want, "weights")
        together = comm.all_gather_object(got.tobytes().hex())
        assert len(set(together)) == 1, together


check_losses()
check_traced_losses()
check_metrics()
check_metric_of_a_loss()
check_metric_of_a_loss_without_weights()
check_metric_within_a_metric()
check_nothing_comes_from_a_rank_without_rows()
check_a_failed_update_changes_nothing()
check_optimizer()
close(ops.sum(sync_mean(convert_to_tensor([1.0, 2.0]))), 3.0, "not sharded")
if comm.rank == 0:
    print("every check passed", flush=True)
