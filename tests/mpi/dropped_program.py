"""What every rank of `test_a_group_is_dropped_while_others_use_it` runs."""

from __future__ import annotations

import gc

import numpy as np

from disttensor import distributed

comm = distributed.communicator()
P, RANK = comm.size, comm.rank


def check_dropped_while_others_wait(first):
    """Who is done with a group's sum drops the group, and its memory is not used again before the others are done."""
    group = comm.split(0)
    group.sum_in_memory()
    array = comm.shared_empty((30_000,), np.float32)
    array[...] = RANK + 1
    handle = group.all_reduce_async(array)
    comm.barrier()
    if first == RANK:
        handle.wait()
        del handle, group
        gc.collect()
        others = [comm.shared_empty((1 << 18,), np.float32) for _ in range(32)]
        for other in others:
            other[...] = -1
        comm.barrier()
    else:
        comm.barrier()
        handle.wait()
    assert (array == P * (P + 1) / 2).all(), array


def check_given_back():
    """Groups that all have dropped take no memory any more."""
    touched = []
    for _ in range(40):
        group = comm.split(0)
        group.sum_in_memory()
        group.all_reduce(np.ones(5000, np.float32))
        del group
        gc.collect()
        comm.barrier()
        touched.append(comm._memory._touched)
    assert touched[-1] == touched[10], touched


for rank in range(P):
    check_dropped_while_others_wait(rank)
check_given_back()
if RANK == 0:
    print("every check passed")
