"""What every rank of `test_grid` runs: a model on a grid of ranks against the same model in one process."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np

import disttensor as dt
from disttensor import distributed, layers
from disttensor.distributed.communicator import SerialCommunicator
from disttensor.errors import ArgumentError, DistributedError, OutOfRangeError, ShapeError

MODEL, FOLDER, SHORT = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] == ["short"]
WORLD = distributed.communicator()
DATA = WORLD.size // MODEL
rng = np.random.default_rng(3)
WORDS, STEPS, ROWS, VOCABULARY = 22, 5, 26, 12
X = rng.integers(0, VOCABULARY, (ROWS, STEPS))
Y = rng.integers(0, 3, ROWS)


def make(dtype: str) -> Any:
    """Every layer that can be divided, with replicated layers before, between and after."""
    dt.utils.clear_session()  # rank 0 has made more models
    dt.utils.set_random_seed(5)
    inputs = dt.Input((STEPS,), dtype="int32")
    x = layers.VocabParallelEmbedding(VOCABULARY, 8, embeddings_regularizer="l2", dtype=dtype)(inputs)
    x = layers.LayerNormalization(dtype=dtype)(x)
    h = layers.ColumnParallelDense(
        12, "gelu", gather_output=False, kernel_regularizer=dt.regularizers.L1L2(1e-3, 1e-2), dtype=dtype
    )(x)
    h = layers.RowParallelDense(8, input_is_parallel=True, kernel_regularizer="l2", dtype=dtype)(h)
    x = layers.Dropout(0.2, dtype=dtype)(layers.Add(dtype=dtype)([x, h]))
    x = layers.BatchNormalization(dtype=dtype)(layers.Flatten(dtype=dtype)(x))
    x = layers.ColumnParallelDense(12, "tanh", bias_regularizer="l1", dtype=dtype)(x)
    x = layers.RowParallelDense(6, "tanh", kernel_constraint="non_neg", dtype=dtype)(x)
    return dt.Model(inputs, layers.Dense(3, "softmax", dtype=dtype)(x))


def train(dtype: str, eagerly: bool, steps: int = 3, callbacks: Any = None, **options: Any) -> Any:
    dt.config.set_floatx(dtype)
    model = make(dtype)
    optimizer = dt.optimizers.Adam(0.0625, **options)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], run_eagerly=eagerly)
    # Three steps an epoch, the last one with another number of rows.
    fitted = model.fit(
        X, Y, batch_size=10, epochs=steps, verbose=0, callbacks=callbacks, resume="auto" if callbacks else None
    )
    return model, fitted.history


def alone(compute: Any) -> Any:
    """What one process without any others computes, in terms of what JSON knows; the others leave it the cores."""
    found = None
    if WORLD.rank == 0:
        with distributed.use_communicator(SerialCommunicator()):
            found = compute()
    return WORLD.broadcast_object(found)


def train_alone(*args: Any, **options: Any) -> Any:
    model, history = train(*args, **options)
    return [w.tolist() for w in model.get_weights()], history, model.predict(X, verbose=0).tolist()


def check_training() -> None:
    for dtype, eagerly, tolerance, options in (
        ("float64", False, 1e-6, {"global_clipnorm": 0.5, "weight_decay": 0.01}),  # that norm is taken in float32
        ("float64", True, 1e-9, {"clipnorm": 0.1}),
        ("float64", False, 1e-9, {"use_ema": True, "gradient_accumulation_steps": 2}),
        ("float32", False, 2e-4, {}),
    )[3 if SHORT else 0 :]:
        want, history, outputs = alone(functools.partial(train_alone, dtype, eagerly, **options))
        model, got_history = train(dtype, eagerly, **options)
        close = {"rtol": tolerance, "atol": tolerance}
        got = model.get_weights()
        assert [w.shape for w in got] == [np.shape(w) for w in want]
        for variable, a, b in zip(model.weights, got, want, strict=True):
            np.testing.assert_allclose(a, b, err_msg=variable.path, **close)
        for name, values in history.items():
            np.testing.assert_allclose(got_history[name], values, err_msg=name, **close)
        np.testing.assert_allclose(model.predict(X, verbose=0), outputs, **close)
        loss = alone(functools.partial(loss_of, got))
        np.testing.assert_allclose(model.evaluate(X, Y, verbose=0)[0], loss, **close)
        digests = WORLD.all_gather_object([w.tobytes().hex() for w in got])
        assert all(d == digests[0] for d in digests), "ranks differ"


def loss_of(weights: Any) -> float:
    copy = make(dt.config.floatx())
    copy.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    copy.set_weights(weights)
    return float(copy.evaluate(X, Y, verbose=0)[0])


def check_parts() -> None:
    model = make("float32")
    divided = [v for v in model.weights if v.partition is not None]
    assert len(divided) == 7, [v.path for v in divided]  # a table, four kernels, two biases of columns
    whole = sum(w.size for w in model.get_weights())
    here = sum(v.size for v in model.weights)
    assert model.count_params() == whole
    assert whole - here == (MODEL - 1) * sum(v.size for v in divided)
    if WORLD.rank == 0:
        print(f"parameters: {whole} in all, {here} on a rank", flush=True)


def check_files() -> None:
    model, _ = train("float32", False, 1)
    path = FOLDER / "grid.weights.safetensors"
    model.save_weights(path)
    want = [w.tobytes() for w in model.get_weights()]
    again = make("float32")
    again.load_weights(path)
    assert [w.tobytes() for w in again.get_weights()] == want
    with distributed.use_communicator(SerialCommunicator()):
        single = make("float32")
        single.load_weights(path)
        assert [w.tobytes() for w in single.get_weights()] == want
        if WORLD.rank == 0:
            single.save_weights(FOLDER / "single.weights.safetensors")
    WORLD.barrier()
    again = make("float32")
    again.load_weights(FOLDER / "single.weights.safetensors")
    assert [w.tobytes() for w in again.get_weights()] == want


def check_checkpoints() -> None:
    """A run that goes on from a checkpoint, slots of the optimizer included, has the bits of an uninterrupted one."""
    model, _ = train("float32", False, 3)
    backup = FOLDER / "backup"
    train("float32", False, 2, callbacks=[dt.callbacks.BackupAndRestore(backup)])
    WORLD.barrier()
    resumed, _ = train("float32", False, 3, callbacks=[dt.callbacks.BackupAndRestore(backup)])
    for a, b in zip(model.get_weights(), resumed.get_weights(), strict=True):
        assert a.tobytes() == b.tobytes()


def check_loss_scale() -> None:
    """An infinite gradient that one rank alone sees, in its part of a weight: no rank takes the step."""
    layer = layers.ColumnParallelDense(4 * MODEL, gather_output=False)
    layer.build((None, 2))
    optimizer = dt.optimizers.LossScaleOptimizer(dt.optimizers.SGD(1.0))
    before = layer.get_weights()
    gradients = [np.ones(v.shape, np.float32) for v in layer.trainable_weights]
    if WORLD.rank == WORLD.size - 1:
        gradients[0][0, 0] = np.inf
    optimizer.apply([dt.convert_to_tensor(g) for g in gradients], layer.trainable_weights)
    for a, b in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def check_errors() -> None:
    x = np.ones((2, 3), np.float32)
    look_up, missing = layers.VocabParallelEmbedding(2 * MODEL, 3), dt.constant([0, 2 * MODEL])
    other = 1 if WORLD.size == MODEL else WORLD.size
    for kind, text, action in (
        (ArgumentError, f"{4 * MODEL + 1}", lambda: layers.ColumnParallelDense(4 * MODEL + 1)(x)),
        (ArgumentError, "'embeddings'", lambda: layers.VocabParallelEmbedding(4 * MODEL + 1, 2).build()),
        (ArgumentError, "UnitNorm", lambda: layers.RowParallelDense(3, kernel_constraint="unit_norm")(x)),
        (ArgumentError, "already", lambda: distributed.set_grid(other)),
        (ArgumentError, "divides", lambda: distributed.set_grid(WORLD.size + 1)),
        (DistributedError, "different grids", lambda: distributed.set_grid(1 if WORLD.rank else WORLD.size)),
        (ShapeError, "features", lambda: _built()(x[:, :1])),
        (OutOfRangeError, f"{2 * MODEL} is out of range", lambda: look_up(missing)),
        (OutOfRangeError, f"{2 * MODEL} is out of range", lambda: dt.function(look_up)(missing)),
    ):
        try:
            action()
        except kind as error:
            assert text in str(error), error  # noqa: PT017 - pytest is not there
        else:
            raise AssertionError(text)


def _built() -> Any:
    layer = layers.RowParallelDense(3)
    layer.build((None, 2 * MODEL))
    return layer


distributed.set_grid(MODEL)
distributed.set_grid(MODEL)  # once more is no error
assert distributed.size(distributed.data_group()) == DATA
assert distributed.size(distributed.model_group()) == MODEL
assert distributed.rank(distributed.data_group()) == WORLD.rank // MODEL
assert distributed.rank(distributed.model_group()) == WORLD.rank % MODEL
check_parts()
check_training()
if not SHORT:
    check_files()
    check_checkpoints()
check_loss_scale()
check_errors()
if WORLD.rank == 0:
    print("every check passed", flush=True)
