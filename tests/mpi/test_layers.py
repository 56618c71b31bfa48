"""Layers on real ranks: the same numbers as in one process, with uneven and empty slices of the batch."""

from __future__ import annotations

from tests.mpi.libraries import on_ranks

PROGRAM = """
import numpy as np

from disttensor import distributed, layers, ops
from disttensor.autodiff import GradientTape
from disttensor.context import Shard
from disttensor.distributed.collectives import sync_mean
from disttensor.graph import function
from disttensor.tensor import Tensor

comm = distributed.communicator()
rows = np.random.default_rng(0).normal(size=(7, 3, 5))
weights = np.random.default_rng(1).normal(size=(7, 3, 5))
# Rank 0 holds four rows, rank 1 three, and any others none.
start, stop = {0: (0, 4), 1: (4, 7)}.get(comm.rank, (7, 7))


def part_of(array):
    return Tensor.wrap(array[start:stop].copy(), Shard(stop - start, 7, start))


def normalized(layer, x, weights):
    # The loss is a mean over rows, so that of a slice is a local mean.
    with GradientTape() as tape:
        tape.watch(x)
        outputs = layer(x, training=True)
        loss = ops.sum(ops.mean(outputs * weights, axis=0))
    return outputs, tape.gradient(loss, [x, layer.gamma, layer.beta])


def state(layer):
    return layer.moving_mean.numpy(), layer.moving_variance.numpy()


whole = layers.BatchNormalization(momentum=0.5, dtype="float64")
with_all = Tensor.wrap(rows), Tensor.wrap(weights)
# What one process computes: no shard, and statistics that are equal on all ranks.
expected, (expected_dx, *expected_dw) = normalized(whole, *with_all)

for traced in (False, True):
    layer = layers.BatchNormalization(momentum=0.5, dtype="float64")
    layer.build((None, 3, 5))
    run = function(lambda x, w: normalized(layer, x, w)) if traced else (lambda x, w: normalized(layer, x, w))
    outputs, (dx, *dw) = run(part_of(rows), part_of(weights))
    np.testing.assert_allclose(outputs.numpy(), expected.numpy()[start:stop], atol=1e-12)
    for a, b in zip(state(layer), state(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    # The gradient of a mean over local rows is rows / local rows times that of a mean over all rows.
    np.testing.assert_allclose(dx.numpy() * (stop - start) / 7, expected_dx.numpy()[start:stop], atol=1e-12)
    shard = Shard(stop - start, 7, start)
    for a, b in zip(dw, expected_dw, strict=True):
        a.shard = shard
        np.testing.assert_allclose(sync_mean(a).numpy(), b.numpy(), atol=1e-12)

# In float32, far from zero: E[x²] − E[x]² would keep no digit of the variance, 0.01.
near = (0.1 * rows + 300).astype("float32")
exact = near.astype("float64")
masks = np.random.default_rng(2).random((7, 3)) < 0.5
masks[3:] = False
for options, array, mask in (({}, near, None), ({"axis": 1}, near.transpose(0, 2, 1), None), ({}, near, masks)):
    seen = np.moveaxis(array, options.get("axis", -1), -1).astype("float64")[() if mask is None else mask]
    axes = tuple(range(seen.ndim - 1))
    layer = layers.BatchNormalization(momentum=0.0, **options)
    w = weights if not options else weights.transpose(0, 2, 1)
    parts = part_of(array), part_of(w.astype("float32"))
    marks = None if mask is None else part_of(mask)

    def step(x, w):
        with GradientTape() as tape:
            tape.watch(x)
            loss = ops.sum(ops.mean(layer(x, training=True, mask=marks) * w, axis=0))
        return tape.gradient(loss, x)

    layer.build((None, *array.shape[1:]))
    step = function(step)
    dx = step(*parts)
    np.testing.assert_allclose(layer.moving_mean.numpy(), seen.mean(axes), rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance.numpy(), seen.var(axes), rtol=1e-3)
    names = [node.name for node in step.graph(*parts)]
    assert names.count("inner_all_reduce_start") + names.count("all_reduce_start") == 2, names

    # The gradient by the formula, on all rows.
    z = np.moveaxis(array, options.get("axis", -1), -1).astype("float64")
    g = np.moveaxis(w, options.get("axis", -1), -1)
    counted = np.ones(z.shape[:2], bool) if mask is None else mask
    rate = 1 / np.sqrt(seen.var(axes) + 1e-3)
    centred = (z - seen.mean(axes)) * rate
    total, product = g.sum((0, 1)), (g * centred).sum((0, 1))
    expected = rate * (g - counted[..., None] * (total + centred * product) / counted.sum())
    found = np.moveaxis(dx.numpy(), options.get("axis", -1), -1) * (stop - start)
    np.testing.assert_allclose(found, expected[start:stop], atol=1e-2)

own = layers.BatchNormalization(momentum=0.5, synchronized=False, dtype="float64")
outputs = own(part_of(rows), training=True).numpy()
mine = rows[start:stop]
if len(mine):
    np.testing.assert_allclose(
        outputs, (mine - mine.mean((0, 1))) / np.sqrt(mine.var((0, 1)) + 1e-3), atol=1e-12
    )
variance = sum(len(r) / 7 * r.var((0, 1)) for r in (rows[:4], rows[4:]))
np.testing.assert_allclose(own.moving_variance.numpy(), 0.5 + 0.5 * variance, atol=1e-12)
np.testing.assert_allclose(own.moving_mean.numpy(), 0.5 * rows.mean((0, 1)), atol=1e-12)

masked = layers.BatchNormalization(momentum=0.0, dtype="float64")
masked(part_of(rows), training=True, mask=part_of(masks))
np.testing.assert_allclose(masked.moving_mean.numpy(), rows[masks].mean(axis=0), atol=1e-12)
np.testing.assert_allclose(masked.moving_variance.numpy(), rows[masks].var(axis=0), atol=1e-12)

dropped = layers.Dropout(0.5, seed=3, dtype="float64")(part_of(rows), training=True).numpy()
alone = layers.Dropout(0.5, seed=3, dtype="float64")(Tensor.wrap(rows), training=True).numpy()
np.testing.assert_array_equal(dropped, alone[start:stop])

if comm.rank == 0:
    print("every check passed", flush=True)
"""


@on_ranks(2, mpich=[3])
def test_layers_do_not_depend_on_the_number_of_ranks(mpirun, n):
    code, output = mpirun(n, PROGRAM)
    assert code == 0, output
    assert output.count("every check passed") == 1, output
