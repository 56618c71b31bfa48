"""Every loss against the installed Keras, and what only we promise."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from disttensor import losses, ops
from disttensor.autodiff import GradientTape
from disttensor.context import Shard
from disttensor.errors import ArgumentError, SerializationError
from disttensor.graph import function
from disttensor.saving.registration import register_keras_serializable
from disttensor.tensor import Tensor, Variable, convert_to_tensor

BATCH, STEPS, CLASSES = 6, 4, 5

# Class, its arguments, what labels and predictions are.
TABLE: list[tuple[str, dict[str, Any], str]] = [
    ("MeanSquaredError", {}, "reals"),
    ("MeanAbsoluteError", {}, "reals"),
    ("MeanAbsolutePercentageError", {}, "reals"),
    ("MeanSquaredLogarithmicError", {}, "reals"),
    ("Huber", {}, "reals"),
    ("Huber", {"delta": 0.3}, "reals"),
    ("LogCosh", {}, "reals"),
    ("CosineSimilarity", {}, "reals"),
    ("CosineSimilarity", {"axis": 1}, "reals"),
    ("BinaryCrossentropy", {}, "bits"),
    ("BinaryCrossentropy", {"label_smoothing": 0.2}, "bits"),
    ("BinaryCrossentropy", {"from_logits": True, "label_smoothing": 0.1}, "bits/logits"),
    ("BinaryFocalCrossentropy", {}, "bits"),
    ("BinaryFocalCrossentropy", {"apply_class_balancing": True, "alpha": 0.3, "gamma": 1.5}, "bits"),
    ("BinaryFocalCrossentropy", {"from_logits": True, "label_smoothing": 0.1}, "bits/logits"),
    ("CategoricalCrossentropy", {}, "one-hot"),
    ("CategoricalCrossentropy", {"label_smoothing": 0.2}, "one-hot"),
    ("CategoricalCrossentropy", {"from_logits": True}, "one-hot/logits"),
    ("CategoricalFocalCrossentropy", {}, "one-hot"),
    ("CategoricalFocalCrossentropy", {"alpha": [0.1, 0.2, 0.3, 0.4, 0.5], "gamma": 1.0}, "one-hot"),
    ("CategoricalFocalCrossentropy", {"from_logits": True, "label_smoothing": 0.1}, "one-hot/logits"),
    ("SparseCategoricalCrossentropy", {}, "classes"),
    ("SparseCategoricalCrossentropy", {"from_logits": True}, "classes/logits"),
    ("SparseCategoricalCrossentropy", {"ignore_class": 2}, "classes"),
    ("SparseCategoricalCrossentropy", {"ignore_class": -1, "from_logits": True}, "classes/logits"),
    ("Hinge", {}, "bits"),
    ("Hinge", {}, "signs"),
    ("SquaredHinge", {}, "signs"),
    ("SquaredHinge", {}, "reals"),
    ("CategoricalHinge", {}, "one-hot"),
    ("KLDivergence", {}, "one-hot"),
    ("Poisson", {}, "bits"),
]
CASES = pytest.mark.parametrize(("name", "arguments", "kind"), TABLE, ids=[f"{n}-{a}-{k}" for n, a, k in TABLE])
REDUCTIONS = ("sum_over_batch_size", "sum", "mean", "mean_with_sample_weight", "none", None)


def data(rng: np.random.Generator, kind: str, arguments: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions; classes that are to be ignored occur."""
    labels, _, logits = kind.partition("/")
    shape = (BATCH, STEPS, CLASSES)
    scores = rng.normal(size=shape).astype(np.float32)
    probabilities = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    classes = rng.integers(0, CLASSES, size=(BATCH, STEPS))
    y_pred = scores if logits or labels in ("reals", "signs") else probabilities
    if labels == "reals":
        y_true = rng.normal(size=shape)
    elif labels == "bits":
        y_true = rng.integers(0, 2, size=shape)
    elif labels == "signs":
        y_true = rng.integers(0, 2, size=shape) * 2 - 1
    elif labels == "one-hot":
        y_true = np.eye(CLASSES)[classes]
    else:
        classes.flat[::3] = arguments.get("ignore_class", 0)
        y_true = classes
    return y_true.astype(np.int32 if labels in ("bits", "signs", "classes") else np.float32), y_pred


def assert_close(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=2e-6, atol=1e-6)


@pytest.mark.keras_oracle
@CASES
def test_values(keras: ModuleType, rng: np.random.Generator, name: str, arguments: Any, kind: str) -> None:
    y_true, y_pred = data(rng, kind, arguments)
    shape = np.asarray(getattr(losses, name)(reduction=None, **arguments)(y_true, y_pred)).shape
    weights = rng.uniform(0.5, 2.0, size=shape).astype(np.float32)
    for reduction, weight in ((None, None), ("sum_over_batch_size", weights), ("sum", weights[:, :1])):
        ours, theirs = (getattr(m, name)(reduction=reduction, **arguments) for m in (losses, keras.losses))
        assert_close(ours(y_true, y_pred, weight), theirs(y_true, y_pred, weight))


@pytest.mark.keras_oracle
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions(keras: ModuleType, rng: np.random.Generator, reduction: str | None) -> None:
    y_true, y_pred = data(rng, "reals", {})
    weights = rng.uniform(0.5, 2.0, size=(BATCH, STEPS)).astype(np.float32)
    ours, theirs = (m.MeanSquaredError(reduction=reduction) for m in (losses, keras.losses))
    for weight in (None, weights, weights[:, :1], 0.5):
        assert_close(ours(y_true, y_pred, weight), theirs(y_true, y_pred, weight))


@pytest.mark.keras_oracle
@CASES
def test_gradients(keras: ModuleType, rng: np.random.Generator, name: str, arguments: Any, kind: str) -> None:
    import jax

    y_true, y_pred = data(rng, kind, arguments)
    ours, theirs = (getattr(m, name)(**arguments) for m in (losses, keras.losses))
    source = convert_to_tensor(y_pred)
    with GradientTape() as tape:
        tape.watch(source)
        loss = ours(y_true, source)
    assert_close(tape.gradient(loss, source), jax.grad(lambda x: theirs(y_true, x))(y_pred))


@pytest.mark.keras_oracle
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["MeanSquaredError", "SparseCategoricalCrossentropy"])
@pytest.mark.parametrize("masked", ["some", "all", "none"])
def test_masks(
    keras: ModuleType, rng: np.random.Generator, name: str, masked: str, weighted: bool, reduction: str | None
) -> None:
    arguments = {"ignore_class": 1} if name.startswith("Sparse") else {}
    y_true, y_pred = data(rng, "classes" if arguments else "reals", arguments)
    mask = {"some": rng.integers(0, 2, (BATCH, STEPS)) > 0, "all": np.zeros((BATCH, STEPS), bool)}.get(
        masked, np.ones((BATCH, STEPS), bool)
    )
    weight = rng.uniform(0.5, 2.0, size=(BATCH, STEPS)).astype(np.float32) if weighted else None
    results = []
    for module, convert in ((losses, convert_to_tensor), (keras.losses, keras.ops.convert_to_tensor)):
        prediction = convert(y_pred)
        prediction._keras_mask = convert(mask)
        results.append(getattr(module, name)(reduction=reduction, **arguments)(y_true, prediction, weight))
    assert_close(*results)


@pytest.mark.keras_oracle
@pytest.mark.parametrize("identifier", ["mse", "MSE", "mae", "MAE", "mape", "msle", "kld", "bce", "logcosh", "hinge"])
def test_short_names(keras: ModuleType, rng: np.random.Generator, identifier: str) -> None:
    y_true, y_pred = data(rng, "one-hot", {})
    theirs = keras.losses.log_cosh if identifier == "logcosh" else keras.losses.get(identifier)
    assert_close(losses.get(identifier)(y_true, y_pred), theirs(y_true, y_pred))


@pytest.mark.keras_oracle
def test_shapes_that_differ_by_an_axis_of_size_one(keras: ModuleType, rng: np.random.Generator) -> None:
    flat, column = rng.normal(size=6).astype(np.float32), rng.normal(size=(6, 1)).astype(np.float32)
    for y_true, y_pred in ((flat, column), (column, flat), (flat, flat), (column, column)):
        ours, theirs = (m.MeanSquaredError(reduction=None) for m in (losses, keras.losses))
        assert_close(ours(y_true, y_pred), theirs(y_true, y_pred))
    classes, scores = rng.integers(0, 3, (6, 1)), rng.normal(size=(6, 3)).astype(np.float32)
    ours, theirs = (m.SparseCategoricalCrossentropy(from_logits=True) for m in (losses, keras.losses))
    assert_close(ours(classes, scores), theirs(classes, scores))
    assert_close(ours(classes[:, 0], scores), theirs(classes[:, 0], scores))


@CASES
def test_traced_gives_the_same_bits(rng: np.random.Generator, name: str, arguments: Any, kind: str) -> None:
    y_true, y_pred = data(rng, kind, arguments)
    loss = getattr(losses, name)(**arguments)
    eager, traced = loss(y_true, y_pred), function(loss)(y_true, y_pred)
    assert eager.numpy().tobytes() == traced.numpy().tobytes()


@CASES
def test_round_trip(rng: np.random.Generator, name: str, arguments: Any, kind: str) -> None:
    y_true, y_pred = data(rng, kind, arguments)
    loss = getattr(losses, name)(reduction="sum", name="mine", **arguments)
    again = losses.deserialize(losses.serialize(loss))
    assert type(again) is type(loss)
    assert (again.name, again.reduction) == ("mine", "sum")
    assert float(again(y_true, y_pred)) == float(loss(y_true, y_pred))


def test_a_configuration_with_the_name_of_a_metric_is_a_loss() -> None:
    import disttensor.metrics  # noqa: F401  registers classes of the same names

    assert isinstance(losses.deserialize({"class_name": "MeanSquaredError", "config": {}}), losses.MeanSquaredError)


def test_wrapped_functions_are_found_by_name() -> None:
    loss = losses.LossFunctionWrapper(losses.huber, delta=0.5)
    again = losses.deserialize(losses.serialize(loss))
    assert again.fn is losses.huber
    assert float(again([[1.0]], [[4.0]])) == 1.375

    @register_keras_serializable()
    def mine(y_true: Any, y_pred: Any) -> Any:
        return ops.sum(y_pred, axis=-1)

    assert losses.deserialize(losses.serialize(losses.LossFunctionWrapper(mine))).fn is mine
    with pytest.raises(SerializationError, match="nowhere"):
        losses.deserialize({"class_name": "LossFunctionWrapper", "config": {"fn": "nowhere"}})


def test_get() -> None:
    assert losses.get(None) is None
    assert losses.get("mse") is losses.mean_squared_error
    assert isinstance(losses.get("MeanSquaredError"), losses.MeanSquaredError)
    assert isinstance(losses.get(losses.Huber), losses.Huber)
    assert losses.get(max) is max
    with pytest.raises(ArgumentError, match="mean_squared_error"):
        losses.get("mean_squared_eror")


def test_reduction_is_checked() -> None:
    with pytest.raises(ArgumentError, match="'average'"):
        losses.MeanSquaredError(reduction="average")


def test_own_losses_are_named_and_nested_predictions_reach_them() -> None:
    class SumOfParts(losses.Loss):
        def call(self, y_true: Any, y_pred: Any) -> Any:
            return ops.mean(y_pred["a"], axis=-1) + y_true * ops.mean(y_pred["b"], axis=-1)

    loss = SumOfParts()
    assert loss.name.startswith("sum_of_parts")
    y_pred = {"a": np.array([[1.0, 3.0]]), "b": np.array([[2.0, 2.0]])}
    assert float(loss(np.array([10.0]), y_pred)) == 22.0


def test_a_weight_for_each_sample_reaches_all_its_values() -> None:
    y_pred = convert_to_tensor(np.ones((2, 2, 1), np.float32))
    loss = losses.MeanSquaredError(reduction=None)
    assert loss(np.zeros((2, 2, 1)), y_pred, [1.0, 3.0]).tolist() == [[1.0, 1.0], [3.0, 3.0]]
    y_pred._keras_mask = convert_to_tensor([[True, False], [True, True]])
    assert loss(np.zeros((2, 2, 1)), y_pred, [1.0, 3.0]).tolist() == [[1.0, 0.0], [3.0, 3.0]]


def test_dtype_of_the_computation() -> None:
    assert losses.MeanSquaredError(dtype="float64")([[1.0]], [[2.0]]).dtype == "float64"
    assert losses.MeanSquaredError()(np.ones((2, 1)), np.ones((2, 1))).dtype == "float32"


@pytest.mark.parametrize("loss", [losses.SparseCategoricalCrossentropy, losses.LossFunctionWrapper])
def test_numbers_of_classes_stay_integers(loss: Any) -> None:
    # No float32 is 2²⁴ + 1; the nearest is 2²⁴, which is no class here.
    ignored = (1 << 24) + 1
    function = () if loss is losses.SparseCategoricalCrossentropy else (losses.sparse_categorical_crossentropy,)
    value = loss(*function, ignore_class=ignored)(np.array([0, ignored], np.int32), np.array([[0.5, 0.5]] * 2))
    assert float(value) == pytest.approx(np.log(2))


@pytest.mark.parametrize("name", ["MeanSquaredError", "KLDivergence", "Hinge"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_rows(name: str, reduction: str | None) -> None:
    result = getattr(losses, name)(reduction=reduction)(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))
    assert result.shape == (() if reduction not in (None, "none") else (0,))


@pytest.mark.parametrize("total", [10, Variable(10, dtype="int64").value])
def test_a_sum_is_that_of_the_global_batch(total: Any) -> None:
    def shard(array: np.ndarray, local: int) -> Tensor:
        return Tensor.wrap(array.astype(np.float32), Shard(local, total, 0))

    values = np.arange(10.0)[:, None]
    loss = losses.MeanSquaredError(reduction="sum")
    parts = [shard(values[a:b], b - a) for a, b in ((0, 3), (3, 3), (3, 10))]
    weighted = sum(float(loss(np.zeros(p.shape), p)) * p.shape[0] / 10 for p in parts)
    assert weighted == pytest.approx(float(np.sum(values**2)))
