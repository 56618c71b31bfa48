"""What every rank of `test_buckets` runs: where buckets stand in the plan, and that they change no result."""

from __future__ import annotations

import sys
from unittest import mock

import numpy as np

import disttensor as keras
from disttensor import config, distributed
from disttensor.distributed import allreduce_pass
from tests.mpi.alone import alone

comm = distributed.communicator()
ROWS = 23  # the last batch has 2, fewer than there may be ranks
X = np.random.default_rng(1).standard_normal((2 * ROWS + 2, 12)).astype(np.float32)
Y = np.arange(len(X)) % 5
PRODUCTS = ("matrix_product", "offered_products")


def train(bucket_bytes=1 << 30, policy="float32", normalize=0, **options):
    config.set_bucket_bytes(bucket_bytes)
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(units, activation="relu", dtype=policy) for units in (300, 200, 100)]
    for at in (3, 2)[:normalize]:
        layers.insert(at, keras.layers.BatchNormalization(dtype=policy))
    model = keras.Sequential([keras.Input((12,)), *layers, keras.layers.Dense(5)])
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, **options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    history = model.fit(X, Y, batch_size=ROWS, epochs=2, shuffle=False, verbose=0).history
    return model, [v.numpy() for v in model.weights], history


def same(got, want, what):
    for a, b in zip(got, want, strict=True):
        assert a.tobytes() == b.tobytes(), (what, np.abs(a - b).max())


def close(got, want, what, tolerance=1e-4):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=str(what))


def check_as_alone():
    cases = [
        {"global_clipnorm": 0.5, "weight_decay": 0.01},
        {"clipnorm": 0.5, "gradient_accumulation_steps": 2},
        {"normalize": 1},
    ]
    for options in cases:
        want, history = alone(lambda options=options: train(**options)[1:])
        _, got, found = train(50_000, **options)
        close(got, want, options, 1e-3 if "normalize" in options else 1e-4)
        assert abs(found["loss"][-1] - history["loss"][-1]) < 1e-4, (options, found, history)
        assert len(set(comm.all_gather_object(got[0].tobytes().hex()))) == 1
    # In half precision ranks round sums of their own; what they end with is still the same for all.
    model, _, found = train(1 << 16, "mixed_float16")
    assert np.isfinite(found["loss"]).all(), found
    assert len(set(comm.all_gather_object(str([w.numpy().tobytes() for w in model.weights])))) == 1


def check_bits():
    """In shared memory ranks are added in their order, and two numbers have one sum: sizes of buckets change no bit."""
    _, want, _ = train()
    for size in (1, 50_000) if comm.size == 2 else (10_000, 50_000):
        _, got, _ = train(size)
        same(got, want, size)


def check_plan():
    model, _, _ = train(50_000)
    plan = next(p for p in model.train_function.plans if any(n.name == "all_reduce_start" for n, _ in p.calls))
    names = [node.name for node, _ in plan.calls]
    starts = [i for i, name in enumerate(names) if name == "all_reduce_start"]
    waits = [i for i, name in enumerate(names) if name == "all_reduce_wait"]
    products = [i for i, name in enumerate(names) if name in PRODUCTS]
    assert len(starts) == len(waits) >= 3, names
    assert starts[0] < products[-1] < starts[-1] < waits[0], names  # some travel while later gradients are computed
    for wait, after in zip(waits, waits[1:], strict=False):
        assert after - wait > 1, names  # and a bucket's update runs before the next is waited for


def check_tail():
    """Within a host the kernels of the last layers, but not the short last one, get their gradients behind the first
    layer's; between hosts as soon as they can.
    """
    model, _, _ = train()
    if distributed.data_group().nodes > 1:
        for plan in model.train_function.plans:
            (started,) = [n for n, _ in plan.calls if n.name == "all_reduce_start"]
            shapes = [v.spec.shape for v in started.inputs if len(v.spec.shape) > 1]
            assert shapes == [(100, 5), (200, 100), (300, 200), (12, 300)], shapes
        return
    for plan in model.train_function.plans:
        started = [n for n, _ in plan.calls if n.name == "all_reduce_start"]
        waited = [n.inputs[0].node for n, _ in plan.calls if n.name == "all_reduce_wait"]
        assert waited == started, [node.name for node, _ in plan.calls]
        members = [node.inputs[: len(node.attrs["starts"])] for node in started]
        shapes = [[v.spec.shape for v in values if len(v.spec.shape) > 1] for values in members]
        assert shapes == [[(100, 5), (12, 300)], [(300, 200), (200, 100)]], shapes
    plan = max(model.train_function.plans, key=lambda plan: plan.arena_bytes)  # of a batch with rows for all
    calls = [(n.name, [s.shape for s in n.specs]) for n, _ in plan.calls]
    places = [
        next(i for i, (name, shapes) in enumerate(calls) if name in PRODUCTS and shape in shapes)
        for shape in [(12, 300), (300, 200), (200, 100)]
    ]
    first, last = (i for i, (name, _) in enumerate(calls) if name == "all_reduce_start")
    assert places[0] < first < min(places[1:]) <= max(places) < last, calls


def check_inner():
    """Short sums on which others depend, as of batch normalization, do not come back to Python either; gradients of
    kernels are computed meanwhile, which changes no bit.
    """
    model, moved, history = train(normalize=2)
    for plan in model.train_function.plans:
        names = [node.name for node, _ in plan.calls]
        starts = [at for at, name in enumerate(names) if name == "inner_all_reduce_start"]
        waits = [at for at, name in enumerate(names) if name == "inner_all_reduce_wait"]
        assert len(starts) == len(waits) == 4, names
        assert all(start < wait for start, wait in zip(starts, waits, strict=True)), names
        assert all(wait < start for start, wait in zip(starts[1:], waits, strict=False)), names
        assert "weighted_sum_of_ranks" not in names, names
        if plan is max(model.train_function.plans, key=lambda plan: plan.arena_bytes):  # of a batch with rows for all
            products = [names[start:wait].count("matrix_product") for start, wait in zip(starts, waits, strict=True)]
            # Within a host the gradient of the kernel between the two comes even later, see `check_tail`.
            assert products == [0, 0, 1, int(distributed.data_group().nodes > 1)], names
    with mock.patch.object(allreduce_pass, "_may_be_moved", return_value=False):
        other, want, expected = train(normalize=2)
    names = [node.name for node, _ in other.train_function.plans[0].calls]
    places = [at for at, name in enumerate(names) if name == "inner_all_reduce_start"]
    assert all(names[at + 1] == "inner_all_reduce_wait" for at in places), names
    same(moved, want, "what is computed while ranks sum")
    assert history == expected
    if sys.argv[1] == "shared":
        full = max(model.train_function.plans, key=lambda plan: plan.arena_bytes)  # of a batch with rows for all
        assert len(full._program.parts) == 1, [node.name for node, _ in full.calls]


check_as_alone()
check_inner()
if sys.argv[1] == "shared" or comm.size == 2:
    check_bits()
check_plan()
check_tail()
if comm.rank == 0:
    print("every check passed")
