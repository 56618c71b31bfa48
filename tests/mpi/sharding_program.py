"""What every rank of `test_sharding` runs: sharded optimizer state against the optimizer by itself.

Argument: a folder for checkpoints, and what to do there.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

import disttensor as keras
from disttensor import callbacks, config, distributed, layers, optimizers
from disttensor.checkpoint import CheckpointManager
from disttensor.errors import DistributedError
from disttensor.optimizers import ShardedOptimizer

comm = distributed.communicator()
FOLDER, JOB = Path(sys.argv[1]), sys.argv[2]
rng = np.random.default_rng(9)
X = rng.normal(size=(37, 20)).astype("float32")
Y = rng.integers(0, 4, 37)


def fit(optimizer: Any, epochs: int = 3, **options: Any) -> tuple[keras.Model, list[float]]:
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((20,)),
            layers.Dense(17, "relu", kernel_constraint="max_norm"),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(4, "softmax"),
        ]
    )
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return model, model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, **options).history["loss"]


def compare(make: Any, what: str, tolerance: float = 1e-4, **options: Any) -> None:
    """Plain and sharded in both stages: the same weights, on all ranks, and a part of the memory."""
    plain, losses = fit(make())
    for stage in (1, 2):
        optimizer = ShardedOptimizer(make(), stage=stage)
        model, found = fit(optimizer)
        for a, b in zip(model.get_weights(), plain.get_weights(), strict=True):
            if config.virtual_shards():
                assert a.tobytes() == b.tobytes(), what
            else:
                np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=f"{what}, stage {stage}")
        np.testing.assert_allclose(found, losses, rtol=1e-4, err_msg=what)
        digest = hashlib.sha256(b"".join(w.tobytes() for w in model.get_weights())).hexdigest()
        assert len(set(comm.all_gather_object(digest))) == 1, what
        memory = optimizer.memory()
        plain_bytes = sum(v.memory.nbytes for v in plain.optimizer.variables if v.shape)
        assert memory["whole"] == plain_bytes, (what, memory, plain_bytes)
        slots = sum(v.partition is not None for v in optimizer.variables)
        assert abs(memory["here"] - memory["whole"] / comm.size) <= 4 * slots, (what, memory)
        here = comm.all_gather_object(memory["here"])
        assert sum(here) == memory["whole"], here


def check_equality() -> None:
    compare(lambda: optimizers.Adam(0.01), "Adam")
    compare(lambda: optimizers.SGD(0.05, momentum=0.9, nesterov=True, clipnorm=0.5), "SGD with clipnorm")

    def adamw() -> Any:
        made = optimizers.AdamW(0.01, weight_decay=0.1, global_clipnorm=0.3)
        made.exclude_from_weight_decay(var_names=["bias"])
        return made

    compare(adamw, "AdamW with global_clipnorm")


def check_options() -> None:
    compare(lambda: optimizers.RMSprop(0.01, use_ema=True, ema_overwrite_frequency=4), "moving averages")
    compare(lambda: optimizers.Adam(0.01, gradient_accumulation_steps=2), "accumulation")


def check_messages() -> None:
    """Many short messages, between sums of batch statistics; ranks without rows; gradients do not pile up."""
    config.set_bucket_bytes(64 << 10)
    width, rows = 128, comm.size - 1  # rank 0 has none
    x = np.random.default_rng(1).normal(size=(rows, width)).astype("float32")
    results = []
    for optimizer in (optimizers.Adam(0.01), ShardedOptimizer(optimizers.Adam(0.01))):
        keras.utils.set_random_seed(3)
        stack = [layers.BatchNormalization() if i % 3 == 2 else layers.Dense(width, "tanh") for i in range(12)]
        model = keras.Sequential([keras.Input((width,)), *stack])
        model.compile(optimizer, "mse")
        history = model.fit(x, x, rows, epochs=6, verbose=0).history["loss"]
        results.append((history, model.get_weights()))
    np.testing.assert_allclose(*(history for history, _ in results), rtol=1e-4)
    for a, b in zip(*(weights for _, weights in results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    plan = model.train_function.plans[-1]
    names = [node.name for node, _ in plan.calls]
    starts = [i for i, name in enumerate(names) if name == "scatter_start"]
    waits = [i for i, name in enumerate(names) if name == "scatter_wait"]
    assert len(starts) == len(waits) == 8, names
    assert all(start < wait for start, wait in zip(starts[1:], waits, strict=False))
    assert any(name == "matrix_product" for name in names[starts[-2] : waits[-2]]), names
    # The parts of all gradients; those of a message; what backward passes keep.
    weights = sum(v.memory.nbytes for v in model.trainable_variables)
    limit = weights / comm.size + 2 * (width + 1) * width * 4 + 50_000
    assert plan.memory().arena < limit, (plan.memory(), limit)
    config.set_bucket_bytes(4 << 20)


def check_eager_and_scaled() -> None:
    results = []
    for optimizer in (ShardedOptimizer(optimizers.Adam(0.01)), optimizers.Adam(0.01)):
        variables = [keras.Variable(np.arange(n, dtype="float32")) for n in (5, 1, 12)]
        for step in range(3):
            gradients = [keras.ops.convert_to_tensor(v.numpy() * (comm.rank + step)) for v in variables]
            optimizer.apply(gradients, variables)
        results.append(np.concatenate([v.numpy() for v in variables]))
    np.testing.assert_allclose(*results, rtol=1e-5)
    scaled = [optimizers.LossScaleOptimizer(o) for o in (ShardedOptimizer(optimizers.SGD(0.1)), optimizers.SGD(0.1))]
    found = []
    for optimizer in scaled:
        variable = keras.Variable(np.ones(7, "float32"))
        for step in range(4):
            gradient = np.full(7, 1.0 + comm.rank, "float32")
            gradient[3] = np.inf if step == 1 and comm.rank == comm.size - 1 else 1.0
            optimizer.apply([keras.ops.convert_to_tensor(gradient * 2**15)], [variable])
        found.append([*variable.numpy().tolist(), float(optimizer.dynamic_scale.numpy())])
    np.testing.assert_allclose(*found, rtol=1e-5)


def refusal(manager: CheckpointManager, tensors: dict[str, Any]) -> str:
    """The error with which a save is refused; empty if it is not."""
    try:
        manager.save(2, tensors)
    except DistributedError as error:
        return str(error)
    return ""


def check_manager() -> None:
    """A `CheckpointManager` saves and restores whole states; ranks that save other things all get an error."""
    model, _ = fit(ShardedOptimizer(optimizers.SGD(0.05, momentum=0.9)), 1)
    plain, _ = fit(optimizers.SGD(0.05, momentum=0.9), 1)

    def state(of: keras.Model) -> dict[str, keras.Variable]:
        return {str(i): v for i, v in enumerate([*of.variables, *of.optimizer.variables])}

    with CheckpointManager(FOLDER / "own") as manager:
        manager.save(1, state(model))
        model.fit(X, Y, batch_size=8, epochs=1, verbose=0)
        for other in (model, plain):
            manager.restore(manager.latest(), state(other))
            keras.utils.set_random_seed(3)
            other.fit(X, Y, batch_size=8, epochs=1, verbose=0)
        for a, b in zip(model.get_weights(), plain.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        error = refusal(manager, {"x": np.zeros(3 + (comm.rank == 1))})
        assert "x: " in error, error
        assert "[[4]" in error, error
        parts = {name: v for name, v in state(model).items() if v.partition is not None}
        assert parts
        assert "the tensors of a checkpoint" in refusal(manager, {} if comm.rank == 1 else parts)
        assert len(manager.checkpoints) == 1


def resume(job: str) -> None:
    """Deterministic training that saves, and goes on; sharded or not, as the job says."""
    config.enable_determinism(shards=8)
    kind, epochs = job.split("-")
    optimizer: Any = optimizers.Adam(0.01)
    if kind == "sharded":
        optimizer = ShardedOptimizer(optimizer)
    backup = callbacks.BackupAndRestore(FOLDER / "checkpoints", delete_checkpoint=False)
    model, _ = fit(optimizer, int(epochs), callbacks=[backup], resume="auto")
    if distributed.is_main():
        np.savez(FOLDER / f"{kind}-{epochs}.npz", *model.get_weights())


if __name__ == "__main__":
    if JOB == "compare":
        for check in (check_equality, check_options, check_messages, check_eager_and_scaled, check_manager):
            check()
    elif JOB == "communicate":
        compare(lambda: optimizers.Adam(0.01), "Adam")
        check_messages()
        check_eager_and_scaled()
        check_manager()
    elif JOB == "messages":
        check_messages()
    elif JOB == "deterministic":
        config.enable_determinism(shards=8)
        compare(lambda: optimizers.Adam(0.01), "deterministic")
        for clip in ("clipnorm", "global_clipnorm"):
            compare(lambda clip=clip: optimizers.SGD(0.05, momentum=0.9, **{clip: 0.05}), f"deterministic, {clip}")
    else:
        resume(JOB)
    if distributed.is_main():
        print("every check passed")
