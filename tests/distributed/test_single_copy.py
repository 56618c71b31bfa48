"""Memory that ranks may share, as far as one process shows it; `tests/mpi/test_single_copy` has the ranks."""

from __future__ import annotations

import copy
import ctypes
import mmap
import os

import numpy as np
import pytest

import disttensor as dt
from disttensor import config
from disttensor.distributed import pages, single_copy, world
from disttensor.distributed.single_copy import SMALLEST, SingleCopy, share
from disttensor.tensor import variable as variable_module

FLOATS = SMALLEST // 4
LENGTH = 3 * mmap.PAGESIZE


@pytest.fixture(autouse=True)
def _with_neighbours(monkeypatch):
    """Variables lie where they do in a process that has neighbours on its host."""
    monkeypatch.setattr(variable_module, "_allocate", single_copy._allocate)


@pytest.fixture
def shared():
    """A variable whose memory is a file's, and the same memory elsewhere."""
    variable = dt.Variable(np.arange(FLOATS + 3, dtype=np.float32))
    own = variable.single_copy
    file = pages.make_file("test")
    os.truncate(file, own.length)
    other, place = (pages.shared(own.length, file, 0) for _ in range(2))
    ctypes.memmove(other, own.address, own.length)
    own._take(place, 1, world.data_group())
    os.close(file)
    yield variable, np.ctypeslib.as_array((ctypes.c_float * variable.size).from_address(other))
    pages.unmap(other, own.length)


def test_allocation():
    variable = dt.Variable(np.arange(FLOATS, dtype=np.float32), name="weight")
    assert variable.memory.ctypes.data % mmap.PAGESIZE == 0
    assert not variable.single_copy.is_shared
    assert variable.single_copy.number == 0
    np.testing.assert_array_equal(variable.numpy(), np.arange(FLOATS))
    assert variable.memory.flags.carray


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "int8", "bool", "complex64"])
def test_allocation_of_dtypes(dtype):
    variable = dt.Variable(np.ones(SMALLEST), dtype=dtype)
    assert variable.dtype == dtype
    assert variable.single_copy is not None
    assert (variable.numpy() == 1).all()


def test_what_is_not_made_for_sharing(monkeypatch):
    assert dt.Variable(np.zeros(FLOATS - 1, np.float32)).single_copy is None
    assert dt.Variable.over(np.zeros(FLOATS, np.float32)).single_copy is None
    monkeypatch.setattr(config, "_single_copy", False)
    assert dt.Variable(np.zeros(FLOATS, np.float32)).single_copy is None


def test_leaving(shared):
    variable, other = shared
    address, before = variable.memory.ctypes.data, variable.numpy()
    other[0] = 8
    assert variable.memory[0] == 8
    variable.assign(before + 1)
    assert not variable.single_copy.is_shared
    assert variable.memory.ctypes.data == address
    np.testing.assert_array_equal(variable.numpy(), before + 1)
    np.testing.assert_array_equal(other, np.r_[8, before[1:]])


def test_no_memory_for_a_copy(shared, monkeypatch):
    """Nothing is lost, and nothing is written to what others see."""
    variable, other = shared
    before = variable.numpy()

    def fails(*_):
        raise OSError("no memory")

    with monkeypatch.context() as broken:
        broken.setattr(pages, "move", fails)
        with pytest.raises(MemoryError, match=f"no {variable.single_copy.length} bytes"):
            variable.assign(before + 1)
    np.testing.assert_array_equal(variable.numpy(), before)
    assert variable.single_copy.is_astray
    variable.assign(before + 1)
    assert not variable.single_copy.is_astray
    np.testing.assert_array_equal(other, before)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_interrupted(shared, monkeypatch, moment):
    """A signal raises just before the pages are replaced, or just after: values are right all the same."""
    variable, other = shared
    before = variable.numpy()
    move = pages.move

    def interrupted(*arguments):
        if moment == "after":
            move(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(pages, "move", interrupted)
        with pytest.raises(KeyboardInterrupt):
            variable.assign(before + 1)
    np.testing.assert_array_equal(variable.numpy(), before)
    variable.assign(before + 1)
    np.testing.assert_array_equal(variable.numpy(), before + 1)
    np.testing.assert_array_equal(other, before)


def test_a_plan_leaves_what_it_writes(shared):
    variable, other = shared
    before = variable.numpy()

    @dt.function
    def step(x):
        return variable.assign_add(x).value[0]

    assert float(step(dt.constant(1.0))) == 1
    assert not variable.single_copy.is_shared
    np.testing.assert_array_equal(variable.numpy(), before + 1)
    np.testing.assert_array_equal(other, before)
    assert variable.single_copy.state == single_copy._REFUSES


def test_a_plan_keeps_what_is_updated_in_sums(shared):
    variable, other = shared
    before = variable.numpy()

    @dt.function
    def step(x):
        return variable.assign_add(x).value[0]

    one = dt.constant(1.0)
    step.graph(one).updated_in_sums = frozenset({variable})
    step(one)
    assert variable.single_copy.is_shared
    np.testing.assert_array_equal(other, before + 1)
    variable.single_copy._group = None  # as an interrupted `leave` has it
    dt.Variable.sharing_changes += 1
    step(one)
    assert not variable.single_copy.is_astray
    np.testing.assert_array_equal(variable.numpy(), before + 2)
    np.testing.assert_array_equal(other, before + 1)
    assert variable.single_copy.state == single_copy._WILLING


def test_copies_of_variables(shared):
    variable, other = shared
    deep = copy.deepcopy(variable)
    assert deep.single_copy is None
    deep.assign(np.zeros(variable.shape))
    assert variable.single_copy.is_shared
    assert other[1] == 1


def test_alone_nothing_is_shared():
    variable = dt.Variable(np.zeros(FLOATS, np.float32))
    share([variable])
    assert not variable.single_copy.is_shared


def test_opening_another_process_file():
    file = pages.make_file("test")
    found = os.fstat(file)
    path = f"/proc/{os.getpid()}/fd/{file}"
    opened = single_copy._opened(path, [found.st_dev, found.st_ino])
    assert os.fstat(opened).st_ino == found.st_ino
    assert os.fstat(opened).st_mode & 0o777 == 0o600
    with pytest.raises(OSError, match="namespace"):
        single_copy._opened(path, [found.st_dev, found.st_ino + 1])
    os.close(opened)
    os.close(file)
    with pytest.raises(OSError, match="No such file"):
        single_copy._opened(path, [found.st_dev, found.st_ino])
    with pytest.raises(OSError, match="Bad file"):
        pages.shared(LENGTH, file, 0)


def test_at_once():
    """So much more memory than before is needed for a moment, but for a variable that is larger."""
    array = np.zeros(single_copy._AT_ONCE // 8, np.float32)
    small, large = SingleCopy(array), SingleCopy(np.zeros(single_copy._AT_ONCE // 2, np.float32))
    assert [len(batch) for batch in single_copy._batches([small, small, small, large, large, small])] == [2, 1, 1, 1, 1]


@pytest.mark.parametrize(("text", "expected"), [("0", False), ("1", True), ("", None)])
def test_setting(monkeypatch, text, expected):
    monkeypatch.setattr(config, "_single_copy", None)
    monkeypatch.setenv("DISTTENSOR_SINGLE_COPY", text)
    assert config.single_copy() is expected
    config.set_single_copy(not expected)
    assert config.single_copy() is not expected
