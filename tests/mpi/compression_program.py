"""What every rank of `test_compression` runs: training with compressed gradients on the embedded digits.

Prints, for each way to compress, the bytes of floating-point numbers that a step sends, and the accuracy reached.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

import disttensor as keras
from disttensor import distributed, dtypes, layers, optimizers
from disttensor.distributed.partition import whole_array
from disttensor.optimizers import CompressedOptimizer, PowerSGD

comm = distributed.communicator()
(X, Y), (X_TEST, Y_TEST) = keras.datasets.digits.load_data()
X, X_TEST = (images.reshape(-1, 64).astype("float32") / 16 for images in (X, X_TEST))


def sent_bytes(graph: Any) -> int:
    """What the sums over ranks of a step send, by the sizes of their operands."""
    nodes = [n for n in graph.nodes if n.op and n.op.communicates and not n.op.name.endswith("all_reduce_wait")]
    return sum(math.prod(n.specs[0].shape) * dtypes.itemsize(n.specs[0].dtype) for n in nodes)


def train(compression: Any) -> tuple[float, int]:
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((64,)), layers.Dense(128, "relu"), layers.Dense(128, "relu"), layers.Dense(10)]
    )
    inner = optimizers.SGD(0.1, momentum=0.9)
    optimizer = inner if compression is None else CompressedOptimizer(inner, compression)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    model.fit(X, Y, batch_size=60, epochs=6, verbose=0)
    weights = hashlib.sha256(b"".join(w.tobytes() for w in model.get_weights())).hexdigest()
    assert len(set(comm.all_gather_object(weights))) == 1
    return model.evaluate(X_TEST, Y_TEST, verbose=0)[1], sent_bytes(model.train_function.plans[-1].graph)


def check_nothing_is_lost() -> None:
    """What was applied and what is owed are together the sum of all gradients."""
    for compression in ("bfloat16", "float16", PowerSGD(rank=1)):
        variable = keras.Variable(np.zeros((6, 8), "float32"))
        optimizer = CompressedOptimizer(optimizers.SGD(1.0), compression)
        rng = np.random.default_rng(comm.rank)
        total = np.zeros((6, 8))
        for _ in range(5):
            gradient = rng.normal(size=(6, 8)).astype("float32")
            optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
            total += comm.all_reduce(gradient / comm.size)
        owed = whole_array(optimizer._owed[0])
        assert np.abs(owed).max() > 1e-5
        np.testing.assert_allclose(-variable.numpy() + owed, total, rtol=0.02, atol=0.02)


check_nothing_is_lost()
for name, way in (
    ("none", None), ("bfloat16", "bfloat16"), ("float16", "float16"), ("PowerSGD(1)", PowerSGD(1)),
    ("PowerSGD(4)", PowerSGD(4)),
):  # fmt: skip
    accuracy, sent = train(way)
    if distributed.is_main():
        print(f"{name}: accuracy {accuracy:.4f}, {sent} bytes a step", flush=True)
