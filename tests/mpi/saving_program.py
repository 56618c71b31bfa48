"""Two saves by all ranks; before the second, one rank is prepared to fail in it.

Usage: saving_program.py FOLDER kill|error RANK OPERATION. Before its OPERATION-th operation on the disk in the second
save, RANK kills itself, or that operation and all after it fail. Rank 0 prints how many operations there were, or the
error that all ranks got.
"""

from __future__ import annotations

import errno
import os
import signal
import sys

import numpy as np

from disttensor import distributed
from disttensor.checkpoint import CheckpointManager, disk
from disttensor.errors import CheckpointError

folder, kind, rank, operation = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
manager = CheckpointManager(folder, keep=1)
done = 0


def count(name: str, path: str) -> None:
    """Called before every operation."""
    global done
    done += 1
    if distributed.rank() == rank and done >= operation:
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)


def save(step: int) -> None:
    """Save something that both ranks have a part of, and that tells which save it is."""
    manager.save(step, {"a": np.full(3000, step, np.float64), "b": np.full(4000, -step, np.float32)}, {"step": step})


save(1)
disk.observer = count
error = ""
try:
    save(2)
except CheckpointError as caught:
    error = str(caught)
disk.observer = None
assert len(set(distributed.communicator().all_gather_object(error))) == 1
counts = distributed.communicator().all_gather_object(done)
if error:
    save(3)  # what failed is no obstacle
manager.close()
if distributed.is_main():
    print(error or f"operations {counts}")
