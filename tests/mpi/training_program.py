"""What every rank of `test_training` runs: training on all ranks against training by one process."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import disttensor as keras
from disttensor import callbacks, config, distributed, layers, ops, optimizers
from disttensor.distributed import activity
from disttensor.errors import SerializationError
from disttensor.training import loop, pace
from disttensor.training.pace import Pace
from tests.mpi.alone import alone

comm = distributed.communicator()
FOLDER = Path(sys.argv[1])
rng = np.random.default_rng(9)
ROWS = 37
X = rng.normal(size=(ROWS, 64)).astype("float32")
Y = rng.integers(0, 4, ROWS)
WEIGHTS = rng.uniform(0.2, 2.0, ROWS).astype("float32")


def close(got: Any, want: Any, what: str, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=tolerance, atol=tolerance, err_msg=what)


def same_on_all_ranks(*arrays: Any) -> None:
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()
    assert len(set(comm.all_gather_object(digest))) == 1, comm.all_gather_object(digest)


def mlp() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(24, activation="relu", kernel_regularizer="l2", activity_regularizer="l1"),
            layers.Dropout(0.4),
            layers.Dense(4, activation="softmax"),
        ]
    )


def convnet() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Reshape((8, 8, 1)),
            layers.Conv2D(6, 3, activation="relu", padding="same"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(4, activation="softmax"),
        ]
    )


def train(make: Callable[[], keras.Model], **options: Any) -> tuple[keras.Model, dict[str, list[float]]]:
    """Six epochs of four full batches and one of 5 rows, validated on batches of 16, 16 and 5 rows."""
    keras.utils.set_random_seed(12)
    model = make()
    eagerly = options.pop("run_eagerly", False)
    model.compile(
        optimizers.Adam(0.003), "sparse_categorical_crossentropy", metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseCategoricalCrossentropy(name="entropy")], run_eagerly=eagerly,
    )  # fmt: skip
    options = {"batch_size": 8, "epochs": 6, "verbose": 0, "validation_data": (X, Y, WEIGHTS), **options}
    options.setdefault("validation_batch_size", 16)
    history = model.fit(X, Y, sample_weight=WEIGHTS, **options)
    return model, history.history


def check_curves() -> None:
    for make in (mlp, convnet):
        expected = alone(lambda make=make: train(make)[1])
        model, history = train(make)
        assert set(history) == set(expected)
        for name, values in expected.items():
            close(history[name][:1], values[:1], f"{make.__name__} {name}, first epoch")
            close(history[name], values, f"{make.__name__} {name}", 1e-3)
        same_on_all_ranks(*model.get_weights(), *(np.array(v) for v in history.values()))


def check_fewer_rows_than_ranks() -> None:
    def short() -> tuple[Any, ...]:
        keras.utils.set_random_seed(2)
        model = mlp()
        model.compile(optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
        history = model.fit(X[:5], Y[:5], batch_size=4, epochs=3, verbose=0)
        one = model.train_on_batch(X[:1], Y[:1])
        return history.history["loss"], one, model.predict(X[:1], verbose=0), *model.get_weights()

    for number, (got, want) in enumerate(zip(short(), alone(short), strict=True)):
        close(got, want, f"fewer rows than ranks, {number}")


def check_evaluate_and_predict() -> None:
    class Two(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, inputs: Any) -> Any:
            return {"outputs": self.dense(inputs), "first": inputs[:, :1]}

    keras.utils.set_random_seed(5)
    model = Two()
    for rows, batch in ((ROWS, 8), (ROWS, 5), (1, 8), (3, 2)):
        found = model.predict(X[:rows], batch_size=batch, verbose=0)
        np.testing.assert_array_equal(found["first"], X[:rows, :1])
        close(found["outputs"], model.dense(X[:rows]), "predict")
        same_on_all_ranks(found["outputs"])
    np.testing.assert_array_equal(model.predict_on_batch(X)["first"], X[:, :1])
    trained, _ = train(mlp, epochs=1)
    for options in ({"batch_size": 7}, {"batch_size": 7, "sample_weight": WEIGHTS}, {"batch_size": 10, "steps": 2}):
        values = trained.evaluate(X, Y, verbose=0, **options)
        close(values, alone(lambda o=options: trained.evaluate(X, Y, verbose=0, **o)), f"evaluate {options}", 1e-6)


def check_masks() -> None:
    """Rows of a sequence that are masked count on no rank; how many there are differs between ranks."""
    steps = rng.integers(1, 6, 11)
    x = rng.normal(size=(11, 5, 3)).astype("float32") * (np.arange(5) < steps[:, None])[..., None]
    y = rng.normal(size=(11, 5, 2)).astype("float32")

    class Mask(layers.Layer):
        def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
            return ops.any(ops.not_equal(inputs, 0.0), axis=-1)

        def call(self, inputs: Any) -> Any:
            return inputs * 1.0

    class Head(layers.Dense):
        def __init__(self) -> None:
            super().__init__(2)
            self.supports_masking = True

    def run() -> tuple[Any, ...]:
        keras.utils.set_random_seed(5)
        model = keras.Sequential([Mask(), Head()])
        model.compile(optimizers.SGD(0.3), "mse", weighted_metrics=["mae"])
        history = model.fit(x, y, batch_size=4, epochs=3, verbose=0).history
        return history["loss"], history["mae"], *model.get_weights()

    for number, (got, want) in enumerate(zip(run(), alone(run), strict=True)):
        close(got, want, f"masks, {number}")


class Count(callbacks.Callback):
    batches = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1


class Stop(Count):
    """Stops training with the 31st batch, if it is told of every batch."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_end(batch)
        self.model.stop_training = self.batches == 31


def check_pace() -> None:
    """Steps without a look by Python are those that a callback sees; ranks agree whether there are such steps."""
    rng = np.random.default_rng(3)
    x, y = (rng.normal(size=(405, n)).astype("float32") for n in (6, 2))
    paces: list[int] = []

    class Noted(Pace):
        def agree(self, exponent: int, most: int = pace.LARGEST) -> None:
            super().agree(exponent, most)
            paces.append(self.steps)

    def run(*watchers: callbacks.Callback, epochs: int = 2) -> tuple[Any, ...]:
        paces.clear()
        keras.utils.set_random_seed(5)
        model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), layers.Dropout(0.3), layers.Dense(2)])
        model.compile(optimizers.Adam(0.01), "mse", metrics=["mae"])
        history = model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, callbacks=watchers).history
        rotation = model.train_function.plans[0]._rotation
        assert rotation.overlaps == (comm.size > 1)  # sums are waited for in the next step
        weights = [np.asarray(w).tobytes() for w in (*model.get_weights(), *model.optimizer.variables)]
        return history, weights, int(model.optimizer.iterations)

    loop.Pace, pace._SECONDS = Noted, 1.0  # type: ignore[misc]
    expected = run(Count())
    assert set(paces) == {1}
    config.set_consistency_interval(7)
    assert run() == expected
    assert max(paces) == 7, paces  # weights are compared every 7 steps
    some = [Count()] if comm.rank == comm.size - 1 else []
    assert run(*some) == expected
    assert set(paces) == {1}
    assert run(*([Stop()] if some else []))[2] == 31
    config.set_consistency_interval(None)
    loop.Pace, pace._SECONDS = Pace, 0.1  # type: ignore[misc]


def check_stopping() -> None:
    class StopOnLastRank(Count):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            super().on_train_batch_end(batch)
            if self.batches == 7 and comm.rank == comm.size - 1:
                self.model.stop_training = True

    stop = StopOnLastRank()
    _, history = train(mlp, callbacks=[stop])
    assert comm.all_gather_object([stop.batches, len(history["loss"])]) == [[7, 2]] * comm.size

    early = callbacks.EarlyStopping("val_loss", mode="max", patience=2, restore_best_weights=True)
    model, history = train(mlp, callbacks=[early], epochs=20)
    assert set(comm.all_gather_object(len(history["loss"]))) == {3}
    same_on_all_ranks(*model.get_weights())


def check_state_of_rank_0() -> None:
    """What rank 0 alone has loaded goes to all, the number of steps as well, from which they count to comparisons."""
    model, _ = train(mlp)
    if comm.rank == 0:
        model.optimizer.iterations.assign(95)
        model.optimizer.variables[-1].assign(np.ones(model.optimizer.variables[-1].shape))
    config.set_consistency_interval(4)
    x = np.ones((9 * comm.size, 64), np.float32)
    model.fit(x, np.ones(len(x), np.int64), batch_size=comm.size, verbose=0)
    config.set_consistency_interval(None)
    assert int(model.optimizer.iterations) == activity.steps.value == 95 + 9
    same_on_all_ranks(*model.get_weights(), *model.optimizer.variables)


def check_custom_loop() -> None:
    def run() -> tuple[Any, ...]:
        keras.utils.set_random_seed(8)
        model = mlp()
        optimizer = optimizers.RMSprop(0.01)
        entropy = keras.losses.SparseCategoricalCrossentropy()
        accuracy = keras.metrics.SparseCategoricalAccuracy()

        @keras.function
        def step(x: Any, y: Any) -> Any:
            with keras.GradientTape() as tape:
                outputs = model(x, training=True)
                loss = entropy(y, outputs)
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
            accuracy.update_state(y, outputs)
            return loss

        loader = keras.data.DataLoader(X, Y, batch_size=8, shuffle=True)
        for _ in range(2):
            for x, y in loader:
                step(x, y)
        return float(accuracy.result()), *model.get_weights()

    for number, (got, want) in enumerate(zip(run(), alone(run), strict=True)):
        close(got, want, f"custom loop, {number}", 1e-4)


def check_own_steps() -> None:
    """What steps return, as steps for Keras do, stands in the logs for the global batch, on every rank."""

    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(4)

        def call(self, inputs: Any) -> Any:
            return self.dense(inputs)

        def train_step(self, data: Any) -> Any:
            x, y = data
            with keras.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
            return {"loss": loss, "rows": ops.shape(x)[0]}

        def test_step(self, data: Any) -> Any:
            return {"error": self.compute_loss(*data, self(data[0]))}

    def run(eagerly: bool) -> tuple[Any, ...]:
        keras.utils.set_random_seed(8)
        model = Own()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizers.SGD(0.1), loss, run_eagerly=eagerly)
        history = model.fit(X, Y, batch_size=9, epochs=2, verbose=0, validation_data=(X[:5], Y[:5])).history
        return history["loss"], history["val_error"], model.train_on_batch(X[:1], Y[:1])[0], *model.get_weights()

    for eagerly in (False, True):
        got, expected = run(eagerly), alone(lambda eagerly=eagerly: run(eagerly))
        for number, (a, b) in enumerate(zip(got, expected, strict=True)):
            close(a, b, f"own steps, eagerly {eagerly}, {number}")
        same_on_all_ranks(*map(np.array, got))


def check_running_eagerly() -> None:
    """The same to the bit on two ranks; on more, messages of other lengths may be summed in another order."""
    tolerance = 0 if comm.size == 2 else 1e-5
    for make in (mlp, convnet):
        traced, expected = train(make, epochs=1)
        eager, history = train(make, epochs=1, run_eagerly=True)
        for name, values in expected.items():
            close(history[name], values, f"eager {make.__name__} {name}", tolerance)
        for a, b in zip(traced.variables, eager.variables, strict=True):
            close(b.numpy(), a.numpy(), f"eager {make.__name__} {a.path}", tolerance)


def check_ready_batches() -> None:
    class Batches(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> Any:
            return X[8 * index : 8 * index + 8], Y[8 * index : 8 * index + 8]

    def run(data: Any, **options: Any) -> Any:
        keras.utils.set_random_seed(3)
        model = mlp()
        model.compile(optimizers.SGD(0.1), "sparse_categorical_crossentropy")
        return model.fit(data, epochs=2, verbose=0, **options).history["loss"]

    expected = alone(lambda: run(X, y=Y, batch_size=8, shuffle=False))
    close(run(Batches(), shuffle=False), expected, "PyDataset")
    close(run((b for _ in range(2) for b in Batches()), steps_per_epoch=5), expected, "generator")


def check_files() -> None:
    """Written once, by rank 0; read by rank 0 for all; errors are the same everywhere."""
    written = [
        callbacks.ModelCheckpoint(FOLDER / "weights" / "{epoch}.safetensors"),
        callbacks.ModelCheckpoint(FOLDER / "best.safetensors", save_best_only=True),
        callbacks.CSVLogger(FOLDER / "log.csv"),
    ]
    model, history = train(mlp, epochs=3, callbacks=written)
    assert sorted(p.name for p in (FOLDER / "weights").iterdir()) == [f"{i}.safetensors" for i in (1, 2, 3)]
    comm.barrier()
    lines = (FOLDER / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch", "0", "1", "2"]
    assert float(lines[3].split(",")[lines[0].split(",").index("loss")]) == history["loss"][2]

    keras.utils.set_random_seed(100 + comm.rank)
    fresh = mlp()
    fresh.load_weights(FOLDER / "weights" / "3.safetensors")
    for a, b in zip(fresh.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for action, error in (
        (lambda: fresh.load_weights(FOLDER / "none.safetensors"), FileNotFoundError),
        (lambda: convnet().load_weights(FOLDER / "best.safetensors"), SerializationError),
        (lambda: fresh.save_weights(FOLDER / "log.csv" / "w.safetensors"), OSError),
        (lambda: fresh.save_weights(FOLDER / "best.safetensors", overwrite=False), ValueError),
    ):
        try:
            action()
        except error:
            continue
        raise AssertionError(f"no {error.__name__}")


def check_output() -> None:
    """The parent counts what is printed."""
    train(mlp, epochs=2, verbose=2, callbacks=[callbacks.EarlyStopping("loss", mode="max", patience=1, verbose=1)])
    model = mlp()
    model.predict(X, verbose=2)
    model.summary()


CHECKS = [
    check_curves, check_fewer_rows_than_ranks, check_evaluate_and_predict, check_masks, check_pace, check_stopping,
    check_state_of_rank_0, check_custom_loop, check_own_steps, check_running_eagerly, check_ready_batches, check_files,
    check_output,
]  # fmt: skip

for check in [globals()[f"check_{name}"] for name in sys.argv[2:]] or CHECKS:
    check()
    comm.barrier()
if comm.rank == 0:
    print(f"every check passed on {comm.size} ranks")
