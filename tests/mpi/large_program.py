"""What every rank of `test_large` runs: messages of more bytes, and of more elements, than 2³¹ - 1."""

from __future__ import annotations

import sys

import numpy as np

from disttensor import distributed

comm = distributed.communicator()
LENGTH = (1 << 31) + 4096
ENDS = slice(-3, None)


def check_all_reduce():
    array = np.full(LENGTH, comm.rank + 1, np.uint8)
    assert distributed.all_reduce(array)[ENDS].tolist() == [3] * 3


def check_broadcast():
    array = np.full(LENGTH, 7 * (comm.rank == 0), np.uint8)
    assert distributed.broadcast(array)[ENDS].tolist() == [7] * 3


def check_all_gather():
    array = np.full(LENGTH // 2, comm.rank + 1, np.uint8)
    found = distributed.all_gather(array)
    assert found.size == LENGTH
    assert found.reshape(2, -1)[:, ENDS].tolist() == [[1] * 3, [2] * 3]


def check_reduce_scatter():
    array = np.full(LENGTH, comm.rank + 1, np.uint8)
    found = distributed.reduce_scatter(array)
    assert found.size == LENGTH // 2
    assert found[ENDS].tolist() == [3] * 3


def check_all_gatherv():
    found = comm.all_gatherv(np.full(LENGTH // 2 + (100 if comm.rank else -100), comm.rank + 1, np.uint8))
    assert (found.size, found[0], found[-1]) == (LENGTH, 1, 2)


def check_all_to_all():
    array = np.full((2, LENGTH // 2), comm.rank + 1, np.uint8)
    assert comm.all_to_all(array)[:, ENDS].tolist() == [[1] * 3, [2] * 3]


for name in sys.argv[1:]:
    globals()[f"check_{name}"]()
    if comm.rank == 0:
        print(name, "passed", flush=True)
