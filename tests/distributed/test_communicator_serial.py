"""`SerialCommunicator` and the functions of `disttensor.distributed` with one process."""

from __future__ import annotations

import inspect
import platform

import numpy as np
import pytest

from disttensor import distributed, dtypes
from disttensor.distributed import Communicator, SerialCommunicator, mpi
from disttensor.errors import ArgumentError, DTypeError, ShapeError


@pytest.fixture
def comm():
    return SerialCommunicator()


@pytest.fixture(params=dtypes.ALL)
def x(request):
    return np.arange(6).reshape(2, 3).astype(dtypes.to_numpy(request.param))


def test_in_place_collectives_return_their_argument(comm, x):
    before = x.copy()
    assert comm.all_reduce(x) is x
    assert comm.all_reduce_async(x).wait() is x
    assert comm.broadcast(x) is x
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("all_reduce", (2, 3)), ("reduce_scatter", (2, 3)), ("all_gather", (1, 2, 3))],
)
@pytest.mark.parametrize("form", ["", "_async"])
def test_out_receives_a_copy(comm, x, name, shape, form):
    out = np.zeros(shape, x.dtype)
    result = getattr(comm, name + form)(x, out=out)
    if form:
        assert result.test()
        result = result.wait()
    assert result is out
    np.testing.assert_array_equal(out.reshape(2, 3), x)


def test_gathered_arrays_are_copies(comm, x):
    for result in (comm.reduce_scatter(x), comm.all_gather(x), comm.all_gatherv(x), comm.all_to_all(x[:1])):
        assert result.dtype == x.dtype
        assert not np.shares_memory(result, x)
    assert comm.all_gather(x).shape == (1, 2, 3)
    np.testing.assert_array_equal(comm.all_gatherv(x), x)
    np.testing.assert_array_equal(comm.all_to_all(x[:1]), x[:1])
    flat = x.reshape(-1).copy()
    assert comm.all_gather_in_place(flat, [0, flat.size]) is flat
    np.testing.assert_array_equal(flat, x.reshape(-1))


def test_objects_look_as_after_a_journey(comm):
    assert comm.broadcast_object({"a": (1, 2.5)}) == {"a": [1, 2.5]}
    assert comm.all_gather_object((None, "ä")) == [[None, "ä"]]


def test_place(comm):
    assert (comm.rank, comm.size, comm.local_rank, comm.local_size, comm.node, comm.nodes) == (0, 1, 0, 1, 0, 1)
    assert comm.hosts == (platform.node(),)
    assert comm.split(3).size == 1
    comm.barrier()
    assert comm.barrier_async().wait() is None


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (DTypeError, "numpy array", lambda c: c.all_reduce([1.0])),
        (DTypeError, "datetime64", lambda c: c.broadcast(np.zeros(2, "M8[s]"))),
        (DTypeError, "float32.*float64", lambda c: c.all_reduce(np.zeros(2, np.float32), out=np.zeros(2))),
        (DTypeError, "no max", lambda c: c.all_reduce(np.zeros(2, complex), "max")),
        (ShapeError, r"\(2,\).*\(3,\)", lambda c: c.all_reduce(np.zeros(2), out=np.zeros(3))),
        (ShapeError, "scalar", lambda c: c.all_gatherv(np.array(1.0))),
        (
            ShapeError,
            "ascend from 0 to the length of the array, 3",
            lambda c: c.all_gather_in_place(np.zeros(3), [0, 2]),
        ),
        (ShapeError, "with one axis", lambda c: c.all_gather_in_place(np.zeros((2, 2)), [0, 4])),
        (ShapeError, "number of ranks, 1", lambda c: c.all_to_all(np.zeros(2))),
        (ArgumentError, "'mean'.*sum, max, min", lambda c: c.all_reduce(np.zeros(2), "mean")),
        (ArgumentError, "read-only", lambda c: c.all_reduce(np.broadcast_to(1.0, 3))),
        (ArgumentError, "root=1", lambda c: c.broadcast(np.zeros(2), 1)),
        (ArgumentError, "root=1", lambda c: c.broadcast_object(1, 1)),
        (ArgumentError, "as JSON", lambda c: c.all_gather_object({1, 2})),
        (ArgumentError, "negative", lambda c: c.split(-1)),
    ],
)
def test_errors_are_those_of_many_ranks(comm, error, match, call):
    with pytest.raises(error, match=match):
        call(comm)


@pytest.mark.parametrize("implementation", [SerialCommunicator, mpi.MPICommunicator])
def test_implementations_have_the_signatures_of_the_protocol(implementation):
    for name, method in inspect.getmembers(Communicator, inspect.isfunction):
        if name.startswith("_"):
            continue
        expected = list(inspect.signature(method).parameters.values())
        assert list(inspect.signature(getattr(implementation, name)).parameters.values()) == expected, name


def test_module_functions():
    assert (distributed.rank(), distributed.size(), distributed.is_main()) == (0, 1, True)
    distributed.barrier()
    world = distributed.communicator()
    distributed.initialize()
    assert distributed.communicator() is world


def test_use_communicator():
    class Second(SerialCommunicator):
        rank, size = 1, 2

    world = distributed.communicator()
    with distributed.use_communicator(Second()) as second:
        assert distributed.communicator() is second
        assert (distributed.rank(), distributed.size(), distributed.is_main()) == (1, 2, False)
    assert distributed.communicator() is world
