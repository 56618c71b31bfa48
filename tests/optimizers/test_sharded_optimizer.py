from __future__ import annotations

import numpy as np
import pytest

import disttensor as keras
from disttensor import layers, optimizers
from disttensor.distributed import activity
from disttensor.distributed.communicator import SerialCommunicator
from disttensor.distributed.partition import FlatPartition
from disttensor.errors import ArgumentError
from disttensor.optimizers import ShardedOptimizer
from disttensor.training.recovery import Recovery

NAMES = ["SGD", "Adam", "AdamW", "Adamax", "Nadam", "RMSprop", "Adagrad", "Adadelta"]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5)])
def test_flat_parts_are_disjoint_and_alike(size, shape):
    whole = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    parts = []
    for rank in range(size):
        group = SerialCommunicator()
        group.rank, group.size = rank, size
        parts.append(FlatPartition(shape, group).part_of(whole))
    assert np.concatenate(parts).tolist() == whole.ravel().tolist()
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stage", [1, 2])
def test_with_one_process_it_is_the_inner_optimizer(rng, name, stage):
    x, y = rng.normal(size=(20, 4)).astype("float32"), rng.integers(0, 3, 20)
    weights = []
    for sharded in (False, True):
        keras.utils.set_random_seed(1)
        inner = getattr(optimizers, name)(0.05)
        model = keras.Sequential([keras.Input((4,)), layers.Dense(5, "tanh"), layers.Dense(3, "softmax")])
        model.compile(ShardedOptimizer(inner, stage) if sharded else inner, "sparse_categorical_crossentropy")
        model.fit(x, y, batch_size=6, epochs=2, verbose=0)
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_its_configuration_makes_an_equal_one():
    optimizer = ShardedOptimizer(optimizers.Adam(0.5), stage=1, name="parts")
    again = optimizers.deserialize(optimizers.serialize(optimizer))
    assert isinstance(again, ShardedOptimizer)
    assert (again.stage, again.name, type(again.inner_optimizer)) == (1, "parts", optimizers.Adam)
    again.learning_rate = 0.25
    assert float(again.inner_optimizer.learning_rate.numpy()) == 0.25


def test_the_summary_tells_what_is_here(capsys):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5)])
    model.compile(ShardedOptimizer(optimizers.Adam()), "mse")
    model.optimizer.build(model.trainable_variables)
    assert model.optimizer.memory() == {"whole": 200, "here": 200}
    model.summary()
    assert " Optimizer state: 200.00 B, of which 200.00 B are on this process" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShardedOptimizer("adam"), "needs a plain optimizer"),
        (lambda: ShardedOptimizer(ShardedOptimizer(optimizers.Adam())), "needs a plain optimizer"),
        (lambda: ShardedOptimizer(optimizers.Adam(), stage=3), "stage must be 1 or 2, got 3"),
        (lambda: ShardedOptimizer(optimizers.Adam()).apply([np.zeros(2)]), "call build"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_optimizers_around_others_count_the_steps_of_the_innermost(rng):
    inner = optimizers.SGD(0.1)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile(optimizers.LossScaleOptimizer(ShardedOptimizer(inner)), "mse")
    model.fit(rng.normal(size=(8, 3)), rng.normal(size=(8, 1)), batch_size=2, verbose=0)
    assert model.optimizer.innermost is inner
    activity.steps.value = 0
    Recovery(model, [], None).begin_counting()
    assert activity.steps.value == int(inner.iterations.numpy()) == 4
