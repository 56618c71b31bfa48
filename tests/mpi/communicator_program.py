"""What every rank of `test_communicator` runs: each result is compared with numpy on data that all ranks know."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import numpy as np

from disttensor import distributed, dtypes
from disttensor.distributed import library
from disttensor.errors import ArgumentError, DTypeError, ShapeError

comm = distributed.communicator()
P = comm.size
SHAPES: list[tuple[int, ...]] = [(), (7,), (0, 3), (4, 3, 2)]
REDUCE = {"sum": np.add.reduce, "max": np.maximum.reduce, "min": np.minimum.reduce}


def data(rank: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Small whole numbers, so that sums are exact in every dtype."""
    values = np.random.default_rng(rank).integers(0, 5, shape)
    return np.asarray(values > 2 if dtype == "bool" else values).astype(dtypes.to_numpy(dtype))


def reduced(shape: tuple[int, ...], dtype: str, op: str) -> np.ndarray:
    parts = np.stack([data(r, shape, dtype) for r in range(P)])
    if dtype in ("float16", "bfloat16"):
        parts = parts.astype(np.float32)
    return np.asarray(REDUCE[op](parts)).astype(dtypes.to_numpy(dtype))


def equal(got: np.ndarray, want: np.ndarray) -> None:
    assert got.dtype == want.dtype, (got.dtype, want.dtype)
    np.testing.assert_array_equal(got, want)
    assert got.tobytes() == want.tobytes()  # a boolean is one of two bytes


def raises(error: type[Exception], match: str, call: Callable[[], object]) -> None:
    message = "no error"
    try:
        call()
    except error as caught:
        message = str(caught)
    assert re.search(match, message), message
    assert f"rank {comm.rank}" in message, message


def check_reductions(dtype: str) -> None:
    for shape in SHAPES:
        for op in ("sum",) if dtypes.is_complex(dtype) else ("sum", "max", "min"):
            want = reduced(shape, dtype, op)
            mine = data(comm.rank, shape, dtype)
            out = np.empty_like(mine)
            assert comm.all_reduce(mine, op, out=out) is out
            equal(out, want)
            equal(mine, data(comm.rank, shape, dtype))
            for _ in range(4):  # from the third on all is prepared
                mine[...] = data(comm.rank, shape, dtype)
                assert comm.all_reduce(mine, op) is mine
                equal(mine, want)
    handles = [comm.all_reduce_async(data(comm.rank, shape, dtype)) for shape in SHAPES]
    for shape, handle in reversed(list(zip(SHAPES, handles, strict=True))):
        equal(handle.wait(), reduced(shape, dtype, "sum"))
        equal(handle.wait(), reduced(shape, dtype, "sum"))
        assert handle.test()
    rows = (2 * P, 3)
    want = reduced(rows, dtype, "sum")[2 * comm.rank : 2 * comm.rank + 2]
    equal(comm.reduce_scatter(data(comm.rank, rows, dtype)), want)
    equal(comm.reduce_scatter_async(data(comm.rank, rows, dtype), out=np.empty_like(want)).wait(), want)


def check_moves(dtype: str) -> None:
    for shape in SHAPES:
        mine = data(comm.rank, shape, dtype)
        want = np.stack([data(r, shape, dtype) for r in range(P)])
        equal(comm.all_gather(mine), want)
        equal(comm.all_gather_async(mine, out=np.empty_like(want)).wait(), want)
        for root in range(P):
            equal(comm.broadcast(data(comm.rank, shape, dtype), root), data(root, shape, dtype))
    rows = [data(r, (3 * ((r + 1) % P), 2), dtype) for r in range(P)]
    equal(comm.all_gatherv(rows[comm.rank]), np.concatenate(rows))
    equal(comm.all_gatherv(rows[-1]), np.concatenate([rows[-1]] * P))
    bounds = [0, *np.cumsum([len(r) for r in rows]).tolist()]
    whole = np.concatenate([r[:, 0] for r in rows])
    mine = np.zeros_like(whole)
    mine[bounds[comm.rank] : bounds[comm.rank + 1]] = rows[comm.rank][:, 0]
    assert comm.all_gather_in_place(mine, bounds) is mine
    equal(mine, whole)
    want = np.stack([data(r, (P, 5), dtype)[comm.rank] for r in range(P)])
    equal(comm.all_to_all(data(comm.rank, (P, 5), dtype)), want)


def check_strides() -> None:
    for dtype in ("float32", "bfloat16", "complex128", "bool"):
        whole = np.zeros((4, 6), dtypes.to_numpy(dtype))
        view = whole.T[1::2]
        view[...] = data(comm.rank, view.shape, dtype)
        assert comm.all_reduce(view) is view
        equal(view, reduced(view.shape, dtype, "sum"))
        assert not whole.T[0::2].any()
        view[...] = data(comm.rank, view.shape, dtype)
        comm.broadcast(view, P - 1)
        equal(view, data(P - 1, view.shape, dtype))
        assert not whole.T[0::2].any()
        equal(comm.all_gather(view)[comm.rank], view)


def check_overlap() -> None:
    memory = np.zeros(10, np.float32)
    for out in (memory[:6], memory[3:9]):
        memory[:6] = data(comm.rank, (6,), "float32")
        comm.all_reduce(memory[:6], out=out)
        equal(out, reduced((6,), "float32", "sum"))


def check_halves() -> None:
    """One rounding at the end: 1 + P·2⁻¹² would be lost in bfloat16 if it were rounded at every addition."""
    small = 2.0**-9
    x = np.array([1.0 if comm.rank == 0 else small], dtypes.to_numpy("bfloat16"))
    want = np.float32(1 + (P - 1) * small).astype(x.dtype)
    assert comm.all_reduce(x)[0] == want, (x, want)
    big = np.full(3, 40000, np.float16)
    assert np.isinf(comm.all_reduce(big)).all()


def check_objects() -> None:
    values = [{"rank": r, "text": "ä" * r, "list": [1.5, None, True]} for r in range(P)]
    assert comm.all_gather_object(values[comm.rank]) == values
    for root in range(P):
        assert comm.broadcast_object(values[comm.rank] if comm.rank == root else object(), root) == values[root]
    raises(ArgumentError, "as JSON", lambda: comm.all_gather_object({1, 2}))


def check_groups() -> None:
    half = comm.split(comm.rank % 2)
    members = list(range(comm.rank % 2, P, 2))
    assert (half.rank, half.size) == (comm.rank // 2, len(members))
    assert half.members == tuple(members)
    assert half.all_reduce(np.array([comm.rank]))[0] == sum(members)
    nested = half.split(0)
    assert nested.members == half.members
    assert comm.hosts == (comm.hosts[0],) * P
    assert (comm.node, comm.nodes, comm.local_rank, comm.local_size) == (0, 1, comm.rank, P)


def check_errors() -> None:
    """Each is raised on every rank, and what comes after still works."""
    x = np.zeros((3, 2), np.float32)
    raises(ShapeError, r"shape \(3, 2\)", lambda: comm.all_reduce(x, out=np.zeros((2, 3), np.float32)))
    raises(DTypeError, "float32.*float64", lambda: comm.all_reduce(x, out=np.zeros((3, 2))))
    raises(DTypeError, "numpy array", lambda: comm.all_reduce([1.0]))
    raises(DTypeError, "datetime64", lambda: comm.all_gather(np.zeros(2, "M8[s]")))
    raises(DTypeError, "complex", lambda: comm.all_reduce(np.zeros(2, np.complex64), "max"))
    raises(ArgumentError, "'mean'", lambda: comm.all_reduce(x, "mean"))
    raises(ArgumentError, "read-only", lambda: comm.all_reduce(np.broadcast_to(np.float32(1), (3,))))
    raises(ArgumentError, f"root={P}", lambda: comm.broadcast(x, P))
    raises(ArgumentError, "negative", lambda: comm.split(-1))
    raises(ShapeError, "multiple of", lambda: comm.reduce_scatter(np.zeros(P + 1)))
    raises(ShapeError, "number of ranks", lambda: comm.all_to_all(np.zeros((P + 1, 2))))
    raises(ShapeError, "scalar", lambda: comm.all_gatherv(np.array(1.0)))
    raises(ShapeError, f"{P + 1} numbers", lambda: comm.all_gather_in_place(np.zeros(3), [0] * P))
    last = comm.rank == P - 1
    odd = np.zeros(3 if last else 2)
    raises(ShapeError, rf"0.*: float64\[2\]; rank {P - 1}: float64\[3\]", lambda: comm.all_gather(odd))
    raises(ShapeError, "same shape", lambda: comm.broadcast(odd))
    raises(ShapeError, "after the first axis", lambda: comm.all_gatherv(np.zeros((2, odd.size))))
    typed = np.zeros(2, np.float32 if last else np.float64)
    raises(DTypeError, rf"rank {P - 1}: float32\[2\]", lambda: comm.all_gather(typed))
    comm.barrier()
    comm.barrier_async().wait()


assert int(sys.argv[1]) == P, P
library.MOST = int(sys.argv[2])
assert (distributed.rank(), distributed.size(), distributed.is_main()) == (comm.rank, P, comm.rank == 0)
for name in dtypes.ALL:
    check_reductions(name)
    check_moves(name)
check_strides()
check_overlap()
check_halves()
check_objects()
check_groups()
check_errors()
if distributed.is_main():
    print("every check passed")
