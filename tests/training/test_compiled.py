"""What `compile` is given, matched to the outputs of a model."""

from __future__ import annotations

import numpy as np
import pytest

from disttensor import losses, metrics, ops
from disttensor.errors import ArgumentError
from disttensor.training.compiled import (
    CompiledLoss,
    CompiledMetrics,
    as_loss,
    as_metric,
    flatten_targets,
    for_each_output,
    names_of_outputs,
)

A = ops.convert_to_tensor(np.linspace(0.1, 0.9, 6, dtype="float32").reshape(3, 2))
B = ops.convert_to_tensor(np.linspace(-1, 1, 3, dtype="float32").reshape(3, 1))
ZEROS = np.zeros((3, 2), "float32")


@pytest.mark.parametrize(
    ("outputs", "names", "expected"),
    [
        (A, None, ["output_0"]),
        (A, ["only"], ["only"]),
        ([A, B], None, ["output_0", "output_1"]),
        ([A, B], ["x", "y"], ["x", "y"]),
        ({"b": A, "a": B}, None, ["a", "b"]),
        ({"b": A, "a": B}, ["x", "y"], ["a", "b"]),
        ({"b": [A, B]}, None, ["output_0", "output_1"]),
        ([A, B], ["wrong number"], ["output_0", "output_1"]),
    ],
)
def test_names_of_outputs(outputs, names, expected):
    assert names_of_outputs(outputs, names) == expected


def test_an_entry_for_each_output():
    names = ["a", "b"]
    assert for_each_output(None, names, "loss", repeat=False) == [None, None]
    assert for_each_output("mse", names, "loss", repeat=True) == ["mse", "mse"]
    assert for_each_output({"b": 1}, names, "loss", repeat=False) == [None, 1]
    assert for_each_output((1, 2), names, "loss", repeat=False) == [1, 2]
    assert for_each_output(1, ["a"], "loss_weights", repeat=False) == [1]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"c": 1}, r"loss names outputs \['c'\] that the model lacks; its outputs are \['a', 'b'\]"),
        ([1, 2, 3], "loss has 3 entries for 2 outputs"),
        (1, "loss must be a list or dict with an entry for each"),
    ],
)
def test_entries_that_do_not_fit(given, match):
    with pytest.raises(ArgumentError, match=match):
        for_each_output(given, ["a", "b"], "loss", repeat=False)


def test_targets():
    assert flatten_targets({"b": 2, "a": 1}, ["a", "b"]) == [1, 2]
    assert flatten_targets([1, [2]], ["a", "b"]) == [1, 2]
    assert flatten_targets(None, ["a", "b"]) == [None, None]
    with pytest.raises(ArgumentError, match="y has 3 arrays, but the model has 2 outputs"):
        flatten_targets([1, 2, 3], ["a", "b"])


@pytest.mark.parametrize("loss", ["mse", losses.MeanSquaredError, losses.MeanSquaredError(), losses.mean_squared_error])
def test_a_loss_may_be_given_in_many_ways(loss):
    assert float(as_loss(loss)(ZEROS, A)) == pytest.approx(np.mean(A.numpy() ** 2))


def test_a_function_of_ones_own_is_a_loss():
    def largest(y_true, y_pred):
        return ops.max(ops.abs(y_true - y_pred), axis=-1)

    weights = np.array([1.0, 0.0, 2.0], "float32")
    value = as_loss(largest)(ZEROS, A, sample_weight=weights)
    assert float(value) == pytest.approx((0.26 + 2 * 0.9) / 3)


def test_the_loss_is_a_weighted_sum():
    compiled = CompiledLoss(["mse", "mae"], [2.0, 0.5])
    value = compiled([ZEROS, np.zeros((3, 1))], [A, B])
    mse, mae = np.mean(A.numpy() ** 2), np.mean(np.abs(B.numpy()))
    assert float(value) == pytest.approx(2 * mse + 0.5 * mae)
    assert {t.name: float(t.result()) for t in compiled.trackers} == pytest.approx(
        {"output_0_loss": mse, "output_1_loss": mae}
    )


def test_each_output_may_have_its_sample_weights():
    compiled = CompiledLoss({"a": "mse", "b": "mse"}, output_names=["a", "b"])
    weights = {"a": np.zeros(3, "float32"), "b": np.ones(3, "float32")}
    value = compiled({"a": ZEROS, "b": np.zeros((3, 1))}, [A, B], weights)
    assert float(value) == pytest.approx(np.mean(B.numpy() ** 2))


def test_outputs_without_loss_or_target_do_not_count():
    assert CompiledLoss([None, None])([ZEROS, ZEROS], [A, A]) is None
    compiled = CompiledLoss({"b": "mse"}, output_names=["a", "b"])
    assert float(compiled({"b": np.zeros((3, 1))}, [A, B])) == pytest.approx(np.mean(B.numpy() ** 2))
    assert [t.name for t in compiled.trackers] == ["b_loss"]


@pytest.mark.parametrize("weights", ["accuracy", ["accuracy"], {"a": "mae"}])
def test_loss_weights_must_be_numbers(weights):
    with pytest.raises(ArgumentError, match="loss_weights must be numbers, got '"):
        CompiledLoss("mse", weights)


@pytest.mark.parametrize(
    ("y_true", "y_pred", "kind"),
    [
        ((3,), (3, 4), "SparseCategorical"),
        ((3, 1), (3, 4), "SparseCategorical"),
        ((3, 4), (3, 4), "Categorical"),
        ((3,), (3, 1), "Binary"),
        ((3, 1), (3, 1), "Binary"),
        ((3, 5), (3, 5, 4), "SparseCategorical"),
        ((3, 5, 4), (3, 5, 4), "Categorical"),
    ],
)
@pytest.mark.parametrize(("name", "suffix"), [("accuracy", "Accuracy"), ("acc", "Accuracy"), ("ce", "Crossentropy")])
def test_accuracy_and_crossentropy_are_chosen_by_shapes(y_true, y_pred, kind, name, suffix):
    metric = as_metric(name, ops.zeros(y_true), ops.zeros(y_pred))
    assert type(metric) is getattr(metrics, kind + suffix)
    assert metric.name == name


def test_a_metric_keeps_the_name_by_which_it_was_asked_for():
    def own(y_true, y_pred):
        return y_pred

    for given, name in [("mae", "mae"), ("MeanSquaredError", "MeanSquaredError"), (own, "own")]:
        assert as_metric(given, B, B).name == name
    metric = metrics.AUC(name="mine")
    assert as_metric(metric, B, B) is metric
    with pytest.raises(ArgumentError, match="acuracy"):
        as_metric("acuracy", B, B)


def test_names_of_metrics_are_unique():
    compiled = CompiledMetrics(["mse", "mse"], ["mse", "mae"])
    compiled.update_state(ZEROS, A, np.zeros(3, "float32"))
    assert [compiled.names[id(m)] for m in compiled.metrics] == ["mse", "mse_1", "weighted_mse", "mae"]
    assert [float(m.result()) > 0 for m in compiled.metrics] == [True, True, False, False]


def test_metrics_of_several_outputs():
    compiled = CompiledMetrics({"b": ["mae", "mse"]}, [["mse"], None], ["a", "b"])
    compiled.update_state([ZEROS, np.zeros((3, 1))], [A, B])
    assert [compiled.names[id(m)] for m in compiled.metrics] == ["a_mse", "b_mae", "b_mse"]
    with pytest.raises(ArgumentError, match="metrics must be a list or dict with an entry for each"):
        CompiledMetrics("mse", None, ["a", "b"]).update_state([ZEROS, ZEROS], [A, A])
