"""Every metric against the installed Keras, and what only we promise."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from disttensor import losses, metrics, ops
from disttensor.errors import ArgumentError, ShapeError
from disttensor.graph import function
from disttensor.tensor import convert_to_tensor

BATCH, CLASSES = 12, 5

# Class, its arguments, what labels and predictions are.
TABLE: list[tuple[str, dict[str, Any], str]] = [
    ("Accuracy", {}, "classes/classes"),
    ("BinaryAccuracy", {}, "bits/probabilities"),
    ("BinaryAccuracy", {"threshold": 0.2}, "bits/probabilities"),
    ("CategoricalAccuracy", {}, "one-hot/probabilities"),
    ("SparseCategoricalAccuracy", {}, "classes/probabilities"),
    ("SparseCategoricalAccuracy", {}, "column/probabilities"),
    ("TopKCategoricalAccuracy", {"k": 2}, "one-hot/probabilities"),
    ("SparseTopKCategoricalAccuracy", {"k": 3}, "classes/probabilities"),
    ("SparseTopKCategoricalAccuracy", {"k": 2, "from_sorted_ids": True}, "classes/ids"),
    ("MeanSquaredError", {}, "reals/reals"),
    ("RootMeanSquaredError", {}, "reals/reals"),
    ("MeanAbsoluteError", {}, "reals/reals"),
    ("MeanAbsolutePercentageError", {}, "reals/reals"),
    ("MeanSquaredLogarithmicError", {}, "reals/reals"),
    ("LogCoshError", {}, "reals/reals"),
    ("CosineSimilarity", {}, "reals/reals"),
    ("R2Score", {}, "reals/reals"),
    ("R2Score", {"class_aggregation": None}, "reals/reals"),
    ("R2Score", {"class_aggregation": "variance_weighted_average", "num_regressors": 2}, "reals/reals"),
    ("BinaryCrossentropy", {"label_smoothing": 0.1}, "bits/probabilities"),
    ("BinaryCrossentropy", {"from_logits": True}, "bits/reals"),
    ("CategoricalCrossentropy", {"label_smoothing": 0.1}, "one-hot/probabilities"),
    ("CategoricalCrossentropy", {"from_logits": True}, "one-hot/reals"),
    ("SparseCategoricalCrossentropy", {}, "classes/probabilities"),
    ("SparseCategoricalCrossentropy", {"from_logits": True, "ignore_class": 1}, "classes/reals"),
    ("KLDivergence", {}, "one-hot/probabilities"),
    ("Poisson", {}, "bits/probabilities"),
    ("Hinge", {}, "bits/reals"),
    ("SquaredHinge", {}, "bits/reals"),
    ("CategoricalHinge", {}, "one-hot/reals"),
    ("TruePositives", {}, "bits/probabilities"),
    ("FalsePositives", {"thresholds": 0.2}, "bits/probabilities"),
    ("TrueNegatives", {"thresholds": [0.1, 0.3]}, "bits/probabilities"),
    ("FalseNegatives", {}, "bits/probabilities"),
    ("Precision", {}, "bits/probabilities"),
    ("Precision", {"thresholds": [0.1, 0.3]}, "bits/probabilities"),
    ("Precision", {"top_k": 2}, "one-hot/probabilities"),
    ("Precision", {"class_id": 1, "thresholds": 0.2}, "one-hot/probabilities"),
    ("Recall", {"thresholds": 0.2}, "bits/probabilities"),
    ("Recall", {"top_k": 2, "class_id": 0}, "one-hot/probabilities"),
    ("AUC", {}, "bits/probabilities"),
    ("AUC", {"from_logits": True, "num_thresholds": 20}, "bits/reals"),
    ("AUC", {"summation_method": "minoring", "num_thresholds": 20}, "bits/probabilities"),
    ("AUC", {"curve": "PR"}, "bits/probabilities"),
    ("AUC", {"curve": "PR", "summation_method": "majoring", "thresholds": [0.1, 0.2, 0.7]}, "bits/probabilities"),
    ("AUC", {"curve": "PRGAIN", "num_thresholds": 10}, "bits/probabilities"),
    ("AUC", {"multi_label": True, "num_thresholds": 10}, "bits/probabilities"),
    (
        "AUC",
        {"multi_label": True, "num_labels": CLASSES, "label_weights": [1.0, 2.0, 3.0, 4.0, 5.0], "curve": "PR"},
        "bits/probabilities",
    ),
    ("F1Score", {}, "one-hot/probabilities"),
    ("F1Score", {"average": "macro", "threshold": 0.2}, "bits/probabilities"),
    ("FBetaScore", {"average": "micro", "beta": 2.0, "threshold": 0.3}, "bits/probabilities"),
    ("FBetaScore", {"average": "weighted", "beta": 0.5}, "one-hot/probabilities"),
]
CASES = pytest.mark.parametrize(("name", "arguments", "kind"), TABLE, ids=[f"{n}-{a}-{k}" for n, a, k in TABLE])


def data(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions of one batch."""
    scores = rng.normal(size=(BATCH, CLASSES))
    classes = rng.integers(0, CLASSES, size=BATCH)
    made = {
        "reals": lambda: rng.normal(size=scores.shape),
        "probabilities": lambda: np.exp(scores) / np.exp(scores).sum(-1, keepdims=True),
        "bits": lambda: rng.integers(0, 2, size=scores.shape),
        "one-hot": lambda: np.eye(CLASSES)[classes],
        "classes": lambda: rng.integers(0, CLASSES, size=BATCH),
        "column": lambda: classes[:, None],
        "ids": lambda: np.argsort(-scores, axis=-1),
    }
    y_true, y_pred = (made[part]() for part in kind.split("/"))
    return y_true.astype(np.float32), y_pred.astype(np.float32)


def assert_close(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=3e-6, atol=1e-6)


@pytest.mark.keras_oracle
@CASES
def test_values(keras: ModuleType, rng: np.random.Generator, name: str, arguments: Any, kind: str) -> None:
    weight = rng.uniform(0.5, 2.0, size=BATCH).astype(np.float32)
    confusion = name in ("AUC", "Precision", "Recall") or "Positives" in name or "Negatives" in name
    # Keras wants weights of counts in the shape of the predictions that count.
    columns = 1 if "class_id" in arguments else CLASSES
    weights = [None, np.repeat(weight[:, None], columns, 1) if confusion else weight]
    ours, theirs = (getattr(m, name)(**arguments) for m in (metrics, keras.metrics))
    for weight in weights:
        y_true, y_pred = data(rng, kind)
        ours.update_state(y_true, y_pred, weight)
        theirs.update_state(y_true, y_pred, weight)
        assert_close(ours.result(), theirs.result())
    ours.reset_state()
    assert all(not v.numpy().any() for v in ours.variables)


@CASES
def test_traced_gives_the_same_bits(rng: np.random.Generator, name: str, arguments: Any, kind: str) -> None:
    eager, traced = (getattr(metrics, name)(**arguments) for _ in range(2))
    update = function(traced.update_state)
    for _ in range(2):
        y_true, y_pred = data(rng, kind)
        eager.update_state(y_true, y_pred)
        update(y_true, y_pred)
    for a, b in zip(eager.variables, traced.variables, strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()
    assert np.array_equal(np.asarray(eager.result()), np.asarray(traced.result()))


@CASES
def test_round_trip(rng: np.random.Generator, name: str, arguments: Any, kind: str) -> None:
    metric = getattr(metrics, name)(name="mine", **arguments)
    again = metrics.deserialize(metrics.serialize(metric))
    assert type(again) is type(metric)
    assert again.name == "mine"
    y_true, y_pred = data(rng, kind)
    assert np.array_equal(np.asarray(metric(y_true, y_pred)), np.asarray(again(y_true, y_pred)))


@pytest.mark.keras_oracle
@pytest.mark.parametrize("name", ["Mean", "Sum"])
@pytest.mark.parametrize(
    ("values", "weights"),
    [
        ((), ()),
        ((), None),
        ((4,), None),
        ((4,), (4,)),
        ((4,), ()),
        ((4, 3), None),
        ((4, 3), (4,)),
        ((4, 3), (4, 1)),
        ((4, 3), (4, 3)),
        ((4, 3, 2), (4, 3)),
        ((4, 1), (4,)),
        ((4,), (4, 1)),
    ],
)
def test_sums_and_means(keras: ModuleType, rng: np.random.Generator, name: str, values: Any, weights: Any) -> None:
    ours, theirs = getattr(metrics, name)(), getattr(keras.metrics, name)()
    for _ in range(2):
        x = rng.normal(size=values).astype(np.float32)
        weight = None if weights is None else rng.uniform(0.5, 2.0, size=weights).astype(np.float32)
        ours.update_state(x, weight)
        theirs.update_state(x, weight)
    for a, b in zip(ours.variables, theirs.variables, strict=True):
        assert_close(a, b)
    assert_close(ours.result(), theirs.result())


@pytest.mark.keras_oracle
@pytest.mark.parametrize("weighted", [False, True])
def test_masks(keras: ModuleType, rng: np.random.Generator, weighted: bool) -> None:
    y_true, y_pred = (rng.normal(size=(4, 3, 2)).astype(np.float32) for _ in range(2))
    mask = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]], bool)
    weight = rng.uniform(0.5, 2.0, size=(4, 3)).astype(np.float32) if weighted else None
    results = []
    for module, convert in ((metrics, convert_to_tensor), (keras.metrics, keras.ops.convert_to_tensor)):
        prediction = convert(y_pred)
        prediction._keras_mask = convert(mask)
        metric = module.MeanSquaredError()
        metric.update_state(y_true, prediction, weight)
        results.append(metric.result())
    assert_close(*results)


def test_a_scalar_with_a_weight_counts_as_that_many() -> None:
    mean = metrics.Mean()
    mean.update_state(2.0, sample_weight=3)
    mean.update_state(6.0, sample_weight=1)
    assert [float(v) for v in mean.variables] == [12.0, 4.0]
    assert float(mean.result()) == 3.0


def test_weights_of_samples_reach_every_label() -> None:
    metric = metrics.TruePositives()
    metric.update_state([[1, 1], [1, 1]], [[1.0, 1.0], [1.0, 0.0]], sample_weight=[10.0, 1.0])
    assert float(metric.result()) == 21.0


def test_state_of_metrics_within_belongs_to_the_outer_one() -> None:
    class Both(metrics.Metric):
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            self.parts = [metrics.Mean(name="a"), metrics.Sum(name="b")]

        def update_state(self, values: Any) -> None:
            for part in self.parts:
                part.update_state(values)

        def result(self) -> Any:
            return {part.name: part.result() for part in self.parts}

    both = Both()
    result = both([1.0, 3.0])
    assert (float(result["a"]), float(result["b"])) == (2.0, 4.0)
    assert len(both.variables) == 3
    both.reset_state()
    assert float(both.result()["b"]) == 0.0


def test_results_without_data() -> None:
    for name, arguments, _ in TABLE:
        metric = getattr(metrics, name)(**arguments)
        assert np.all(np.asarray(metric.result()) == 0.0), name


def test_names() -> None:
    first, second = metrics.TruePositives(), metrics.TruePositives()
    assert first.name.startswith("true_positives")
    assert first.name != second.name
    assert metrics.Mean().variables[0].path == "mean/total"


def test_get() -> None:
    assert metrics.get(None) is None
    assert isinstance(metrics.get("accuracy"), metrics.Accuracy)
    assert isinstance(metrics.get("mse"), metrics.MeanSquaredError)
    assert isinstance(metrics.get("mean_squared_error"), metrics.MeanSquaredError)
    assert isinstance(metrics.get("AUC"), metrics.AUC)
    assert isinstance(metrics.get(metrics.Recall), metrics.Recall)
    assert metrics.get(losses.huber) is losses.huber
    config = {"class_name": "MeanSquaredError", "config": {}}
    assert isinstance(metrics.deserialize(config), metrics.MeanSquaredError)
    with pytest.raises(ArgumentError, match="precision"):
        metrics.get("precison")
    with pytest.raises(ArgumentError, match="not a metric"):
        metrics.get(losses.MeanSquaredError())


def test_wrapped_functions_are_found_by_name() -> None:
    metric = metrics.MeanMetricWrapper(losses.huber, delta=0.5)
    again = metrics.deserialize(metrics.serialize(metric))
    assert float(again([[1.0]], [[4.0]])) == float(metric([[1.0]], [[4.0]])) == 1.375


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ArgumentError, match="between 0 and 1"):
        metrics.Precision(thresholds=[0.5, 2.0])
    with pytest.raises(ArgumentError, match="curve"):
        metrics.AUC(curve="roc")
    with pytest.raises(ArgumentError, match="num_thresholds"):
        metrics.AUC(num_thresholds=1)
    with pytest.raises(ArgumentError, match="between 0 and 1"):
        metrics.AUC(thresholds=[0.5, 1.5])
    with pytest.raises(ShapeError, match=r"\(2,\).*\(3,\)"):
        metrics.Recall()([1, 0], [0.1, 0.2, 0.3])
    with pytest.raises(ShapeError, match=r"\(2,\)"):
        metrics.F1Score()([1, 0], [0.1, 0.2])
    with pytest.raises(ArgumentError, match="average"):
        metrics.F1Score(average="mean")


def test_ties_are_counted_in_favour_of_the_label() -> None:
    assert metrics.sparse_top_k_categorical_accuracy([1, 2], [[1.0, 1.0, 1.0]] * 2, k=1).tolist() == [1.0, 1.0]
    assert metrics.sparse_top_k_categorical_accuracy([0], [[np.nan, 1.0]], k=2).tolist() == [0.0]
    assert float(ops.mean(metrics.binary_accuracy([1, 0], [0.7, 0.4]))) == 1.0
