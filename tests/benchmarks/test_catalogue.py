"""The definitions against published and hand-made counts, and against XLA's count of operations."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.catalogue import WORKLOADS, Piece, Workload, attention, convolution, lstm


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("W1", 784 * 64 + 64 + 64 * 10 + 10),
        ("W2", 784 * 1024 + 1024 * 1024 + 1024 * 10 + 2058),
        ("W3", 34826),  # as the summary of Keras's example "Simple MNIST convnet" says
        ("W4", 20000 * 128 + 131584 + 129),  # 131584: the summary of Keras's LSTM(128) on 128 inputs
    ],
)
def test_weights(name: str, parameters: int) -> None:
    assert WORKLOADS[name].parameters == parameters


def test_resnet_20_has_the_published_cost() -> None:
    # He et al. (2015), table 6: 0.27 million weights; 41 million multiplications are quoted everywhere.
    workload = WORKLOADS["W6"]
    assert workload.parameters == pytest.approx(0.27e6, rel=0.02)
    assert sum(piece.products for piece in workload.pieces) == pytest.approx(41e6, rel=0.02)


def test_flops_and_bytes_by_hand() -> None:
    pieces = (Piece(products=6, weights=8, outputs=2), Piece(products=4, weights=6, outputs=2))
    workload = Workload("X", "", 5, 1, (3,), None, 2, "adam", pieces)
    # Forward 10, gradients of weights 10, and of the second layer's input 4.
    assert workload.flops == 5 * 2 * (10 + 10 + 4)
    assert workload.bytes == 4 * (10 * 14 + 5 * (5 * 4 + 2 * 3))


def test_an_embedded_input_passes_gradients_on() -> None:
    workload = Workload("X", "", 5, 1, (3,), 7, 2, "sgd", (Piece(6, 8, 2),))
    assert workload.flops == 5 * 2 * 3 * 6
    assert workload.bytes == 4 * (8 * 8 + 5 * (5 * 2 + 2 * 3))


def test_pieces() -> None:
    assert convolution(side=4, kernel=3, inputs=2, filters=5) == Piece(16 * 90, 90 + 5, 16 * 5)
    assert lstm(steps=7, inputs=2, units=3).weights == 4 * (2 * 3 + 3 * 3 + 3)
    scores = attention(positions=6, width=8, heads=2)[3]
    assert scores == Piece(2 * 6 * 6 * 8, 0, 2 * 6 * 6 + 6 * 8)


@pytest.mark.parametrize("name", ["W2", "W6"])
def test_flops_are_those_that_xla_counts(name: str) -> None:
    jax = pytest.importorskip("jax")
    from benchmarks.workloads.jax_models import MODELS, Maker

    workload = WORKLOADS[name]
    maker = Maker()
    model = MODELS[name](maker)
    x = workload.data(1)[0]

    def loss(weights: object) -> object:
        return model(weights, maker.statistics, x, jax.random.key(0))[0].sum()  # type: ignore[arg-type]

    counted = jax.jit(jax.grad(loss)).lower(maker.weights).cost_analysis()["flops"]
    # XLA also counts what is elementwise, and leaves out products with the zeros of padding.
    assert workload.flops == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_data(workload: Workload) -> None:
    x, y = workload.data(5)
    assert x.shape == (5 * workload.batch, *workload.input_shape)
    assert x.dtype == ("float32" if workload.vocabulary is None else "int32")
    if workload.vocabulary is not None:
        assert 0 <= x.min() <= x.max() < workload.vocabulary
    assert set(np.unique(y)) == set(range(max(workload.classes, 2)))
    assert y.shape == ((len(x), 1) if workload.classes == 1 else (len(x),))
    np.testing.assert_array_equal(workload.data(5)[0], x)
