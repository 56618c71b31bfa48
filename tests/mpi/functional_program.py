"""What every rank of `test_functional` runs: values against numpy, gradients against finite differences over ranks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import disttensor as dt
from disttensor import distributed
from disttensor.errors import ArgumentError, DistributedError, DTypeError, ShapeError, TracingError

WORLD = distributed.communicator()
assert WORLD.size == int(sys.argv[1]) == distributed.size()
assert distributed.local_size() == WORLD.size
assert distributed.local_rank() == distributed.rank() == WORLD.rank
PAIRS = distributed.split(WORLD.rank // 2)
REVERSE = distributed.split(WORLD.rank % 2, PAIRS)  # of one rank each
GROUPS = (None, PAIRS, REVERSE)
assert distributed.size(PAIRS) == min(2, WORLD.size - WORLD.rank // 2 * 2)
assert distributed.size(REVERSE) == 1


def members(group: Any) -> list[int]:
    if group is None:
        return list(range(WORLD.size))
    first = WORLD.rank // 2 * 2
    return list(range(first, min(first + 2, WORLD.size))) if group is PAIRS else [WORLD.rank]


def data(rank: int, shape: tuple[int, ...], dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng([rank, *shape]).integers(-8, 9, shape).astype(dtype)


def block(x: np.ndarray, number: int, count: int, axis: int) -> np.ndarray:
    return np.split(x, count, axis)[number]


def cases(
    group: Any,
) -> dict[str, tuple[tuple[int, ...], Callable[[Any], Any], Callable[[list[np.ndarray], int], Any]]]:
    """For each call: the shape of its input, the call, and what numpy says of all ranks' inputs and the own number."""
    n = len(members(group))
    return {
        "sum": ((2, 3), lambda x: distributed.all_reduce(x, group=group), lambda xs, _: sum(xs)),
        "mean": ((3,), lambda x: distributed.all_reduce(x, "mean", group), lambda xs, _: np.mean(xs, 0)),
        "max": ((2, 3), lambda x: distributed.all_reduce(x, "max", group), lambda xs, _: np.max(xs, 0)),
        "min": ((5,), lambda x: distributed.all_reduce(x, "min", group), lambda xs, _: np.min(xs, 0)),
        "gather": ((2, 3), lambda x: distributed.all_gather(x, group=group), lambda xs, _: np.concatenate(xs)),
        "gather 1": ((2, 3), lambda x: distributed.all_gather(x, -1, group), lambda xs, _: np.concatenate(xs, 1)),
        "scatter": (
            (2 * n, 2), lambda x: distributed.reduce_scatter(x, group=group), lambda xs, r: block(sum(xs), r, n, 0)
        ),
        "scatter 1": (
            (2, n, 2),
            lambda x: distributed.reduce_scatter(x, "mean", 1, group),
            lambda xs, r: block(np.mean(xs, 0), r, n, 1),
        ),
        "broadcast": ((2, 2), lambda x: distributed.broadcast(x, n - 1, group), lambda xs, _: xs[n - 1]),
        "scalar": ((), lambda x: distributed.all_reduce(x, group=group), lambda xs, _: sum(xs)),
        "empty": ((0, 2), lambda x: distributed.all_gather(x, 1, group), lambda xs, _: np.concatenate(xs, 1)),
    }  # fmt: skip


def check_values() -> None:
    for group in GROUPS:
        mine = members(group).index(WORLD.rank)
        for name, (shape, call, numpy) in cases(group).items():
            for dtype in ("float64", "float32", "float16", "bfloat16", "int32", "complex64"):
                if (dtype == "int32" and name in ("mean", "scatter 1")) or (dtype[0] == "c" and name in ("max", "min")):
                    continue
                kind = dt.ops.zeros((), dtype).numpy().dtype
                x = data(WORLD.rank, shape).astype(kind)
                kept = x.copy()
                wide = np.complex128 if dtype[0] == "c" else np.float64
                want = np.asarray(numpy([data(r, shape).astype(wide) for r in members(group)], mine)).astype(kind)
                eager, tensor = call(x), call(dt.convert_to_tensor(x))
                traced = dt.function(call)(x) if dtype in ("float64", "float16") else tensor
                assert (type(eager), eager.dtype) == (np.ndarray, kind), (name, dtype, type(eager))
                np.testing.assert_array_equal(x, kept, name)
                assert not np.may_share_memory(eager, x), name
                for got in (eager, traced.numpy(), tensor.numpy()):
                    np.testing.assert_allclose(got, want, rtol=1e-2 if kind.itemsize == 2 else 1e-6, err_msg=str(name))
                assert eager.tobytes() == traced.numpy().tobytes() == tensor.numpy().tobytes(), (name, dtype)


def check_gradients() -> None:
    """dL/dxᵣ of L = Σₛ Lₛ by central differences."""
    step = 1e-6
    for group in GROUPS:
        n = len(members(group))
        for name, (shape, call, _) in cases(group).items():
            x = np.asarray(np.random.default_rng([7, WORLD.rank]).normal(size=shape))

            def loss(x: Any, call: Any = call) -> Any:
                y = call(dt.ops.sin(x))
                weight = np.random.default_rng([8, WORLD.rank]).normal(size=y.shape)
                return dt.ops.sum(y * y * weight)

            def gradient(x: Any, loss: Any = loss) -> Any:
                with dt.GradientTape() as tape:
                    tape.watch(x)
                    value = loss(x)
                return tape.gradient(value, x)

            got = gradient(dt.convert_to_tensor(x)).numpy()
            traced = dt.function(gradient)(dt.convert_to_tensor(x)).numpy()
            assert traced.tobytes() == got.tobytes(), name
            # Along one random direction for each rank, which moves while the others stand still.
            direction = np.random.default_rng([9, WORLD.rank]).normal(size=shape)
            for rank in range(WORLD.size):
                moved = [x + sign * step * direction * (rank == WORLD.rank) for sign in (1, -1)]
                totals = [WORLD.all_reduce(np.array([float(loss(dt.convert_to_tensor(m)))]))[0] for m in moved]
                if rank == WORLD.rank:
                    want = (totals[0] - totals[1]) / (2 * step)
                    np.testing.assert_allclose(np.sum(got * direction), want, 1e-5, 1e-7, err_msg=f"{name} {n}")


def check_second_order() -> None:
    """y = Σᵣ xᵣ, L = Σₛ y³ = P·y³: the gradient is 3P·y², and that of the sum of all ranks' gradients 6P²·y."""
    x = dt.convert_to_tensor(np.float64(WORLD.rank + 1))
    with dt.GradientTape() as outer:
        outer.watch(x)
        with dt.GradientTape() as inner:
            inner.watch(x)
            value = distributed.all_reduce(x) ** 3
        first = inner.gradient(value, x)
    n, y = WORLD.size, WORLD.size * (WORLD.size + 1) / 2
    np.testing.assert_allclose(first.numpy(), 3 * n * y**2)
    np.testing.assert_allclose(outer.gradient(first, x).numpy(), 6 * n**2 * y)


def check_loop_of_ones_own() -> None:
    """The mean over all ranks' rows of a batch-wide formula, minimised: as one process does it."""
    features = data(WORLD.rank, (4, 3)) / 8
    weight = dt.Variable(np.ones(3))
    optimizer = dt.optimizers.SGD(0.125)

    @dt.function
    def step(x: Any) -> Any:
        with dt.GradientTape() as tape:
            norm = distributed.all_reduce(dt.ops.mean((x @ dt.ops.reshape(weight, (3, 1))) ** 2), "mean")
            loss = dt.ops.log(1 + norm)
        optimizer.apply([tape.gradient(loss, weight)], [weight])
        return loss

    everything = np.concatenate([data(r, (4, 3)) / 8 for r in range(WORLD.size)])
    want = np.ones(3)
    for _ in range(5):
        loss = step(dt.convert_to_tensor(features))
        norm = np.mean((everything @ want) ** 2)
        np.testing.assert_allclose(loss.numpy(), np.log1p(norm), rtol=1e-12)
        want = want - 0.125 * (2 / len(everything)) * everything.T @ (everything @ want) / (1 + norm)
    np.testing.assert_allclose(weight.numpy(), want, rtol=1e-12)


def raises(kind: type[Exception], texts: list[str], action: Callable[[], Any]) -> None:
    try:
        action()
    except kind as error:
        assert all(text in str(error) for text in texts), error  # noqa: PT017 - pytest is not there
    else:
        raise AssertionError(f"no {kind.__name__}")


def check_errors() -> None:
    last = WORLD.size - 1
    is_last = WORLD.rank == last
    odd = np.ones((2, 3 + is_last))
    others = "rank 0" if last == 1 else "ranks " + ", ".join(map(str, range(last)))
    shapes = [f"{others}: ", "float64[2, 3]", f"rank {last}: ", "float64[2, 4]", "same shape and dtype"]
    for call in (distributed.all_reduce, distributed.all_gather, distributed.broadcast):
        raises(ShapeError, shapes, lambda call=call: call(odd))
        raises(ShapeError, shapes, lambda call=call: dt.function(call)(odd))
    raises(ShapeError, ["float64[0]", f"float64[{WORLD.size}]"],
           lambda: distributed.reduce_scatter(np.ones(WORLD.size * is_last)))  # fmt: skip
    mixed = np.ones(3, np.float32 if is_last else np.float64)
    raises(DTypeError, ["float32[3]", "float64[3]"], lambda: distributed.all_reduce(mixed))
    raises(
        DistributedError,
        ["different collectives", f"rank {last}: broadcast(root=0)", f"{others}: all_reduce(op='sum')"],
        lambda: (distributed.broadcast if is_last else distributed.all_reduce)(np.ones(3)),
    )
    raises(DistributedError, ["op='max'", "op='sum'"],
           lambda: distributed.all_reduce(np.ones(3), "max" if is_last else "sum"))  # fmt: skip
    uneven = np.ones(WORLD.size + 1)
    raises(
        ShapeError, [f"({WORLD.size + 1},)", f"pad it to {2 * WORLD.size}"], lambda: distributed.reduce_scatter(uneven)
    )
    raises(ArgumentError, [f"root={WORLD.size}"], lambda: distributed.broadcast(uneven, WORLD.size))
    raises(ArgumentError, ["'product'", "mean"], lambda: distributed.all_reduce(uneven, "product"))
    raises(ArgumentError, ["axis=1"], lambda: distributed.all_gather(uneven, 1))
    raises(ShapeError, ["expand_dims"], lambda: distributed.all_gather(1.0))
    raises(DTypeError, ["floating-point"], lambda: distributed.all_reduce(np.ones(3, int), "mean"))
    raises(ArgumentError, ["Communicator", "'row'"], lambda: distributed.all_reduce(uneven, group="row"))
    raises(ArgumentError, ["color", "'a'"], lambda: distributed.split("a"))
    raises(TracingError, ["barrier"], lambda: dt.function(lambda x: distributed.barrier() or x)(uneven))
    raises(TracingError, ["split"], lambda: dt.function(lambda x: distributed.split(0) and x)(uneven))
    distributed.barrier(PAIRS)  # all is well after the errors
    assert distributed.all_reduce(1) == WORLD.size


check_values()
check_gradients()
check_second_order()
check_loop_of_ones_own()
check_errors()
distributed.barrier()
if WORLD.rank == 0:
    print("every check passed", flush=True)
