"""What one process computes, for a program that compares with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from mpi4py import MPI

import disttensor as keras
from disttensor import distributed
from disttensor.distributed.communicator import SerialCommunicator


def alone(compute: Callable[[], Any]) -> Any:
    """What rank 0 computes under the communicator of one rank. The others leave it the cores, and get a copy."""
    found = None
    if distributed.rank() == 0:
        with distributed.use_communicator(SerialCommunicator()):
            found = compute()
    keras.utils.clear_session()  # names go on alike on all ranks, though rank 0 has made more models
    together = MPI.COMM_WORLD.Ibarrier()
    while not together.Test():
        time.sleep(0.002)
    return MPI.COMM_WORLD.bcast(found)
