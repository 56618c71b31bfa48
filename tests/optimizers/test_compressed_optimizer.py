from __future__ import annotations

import numpy as np
import pytest

import disttensor as keras
from disttensor import config, distributed, optimizers
from disttensor.distributed.partition import FlatPartition
from disttensor.errors import ArgumentError
from disttensor.optimizers import CompressedOptimizer, PowerSGD, compressed_optimizer


@pytest.mark.parametrize("compression", ["bfloat16", "float16", PowerSGD(2)])
def test_one_process_compresses_nothing(compression):
    results = []
    for optimizer in (optimizers.Adam(0.1), CompressedOptimizer(optimizers.Adam(0.1), compression)):
        variable = keras.Variable(np.ones((8, 6), "float32"))
        for step in range(3):
            optimizer.apply([keras.ops.convert_to_tensor(np.full((8, 6), 0.1 + step, "float32"))], [variable])
        results.append(variable.numpy())
    np.testing.assert_array_equal(*results)


def test_orthonormal_columns(rng):
    columns = compressed_optimizer._orthonormal(keras.ops.convert_to_tensor(rng.normal(size=(9, 4)).astype("float32")))
    np.testing.assert_allclose(columns.numpy().T @ columns.numpy(), np.eye(4), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "expected"), [((), (1, 1)), ((5,), (1, 5)), ((3, 4), (3, 4)), ((3, 3, 2, 8), (18, 8))]
)
def test_gradients_as_matrices(shape, expected):
    assert compressed_optimizer._matrix(shape) == expected


@pytest.mark.parametrize("compression", ["float16", PowerSGD(3)])
def test_its_configuration_makes_an_equal_one(compression):
    optimizer = CompressedOptimizer(optimizers.SGD(0.5), compression)
    again = optimizers.deserialize(optimizers.serialize(optimizer))
    assert isinstance(again, CompressedOptimizer)
    assert getattr(again.compression, "rank", again.compression) == getattr(compression, "rank", compression)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CompressedOptimizer("sgd"), "needs a plain optimizer"),
        (lambda: CompressedOptimizer(optimizers.SGD(), "int8"), "must be 'bfloat16', 'float16' or a PowerSGD"),
        (lambda: PowerSGD(0), "rank must be a positive int"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize("wrap", [CompressedOptimizer, optimizers.ShardedOptimizer])
def test_weights_that_are_divided_are_refused(wrap):
    variable = keras.Variable(np.ones(4, "float32"), name="part")
    variable.partition = FlatPartition((8,), distributed.data_group())
    with pytest.raises(ArgumentError, match=r"part, which are divided .* use the inner optimizer by itself"):
        wrap(optimizers.Adam()).build([variable])


def test_deterministic_mode_refuses_it():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(CompressedOptimizer(optimizers.SGD(0.1)), "mse")
    config.enable_determinism(4)
    try:
        with pytest.raises(ArgumentError, match=r"deterministic mode, since .* config\.disable_determinism\(\)"):
            model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)
    finally:
        config.disable_determinism()
