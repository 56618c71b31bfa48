"""Ctrl-C during what several ranks do together without `BackupAndRestore` (which `test_recovery` has)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.mpi.libraries import open_mpi_alone

PROGRAM = Path(__file__).with_name("ctrl_c_program.py")


@pytest.mark.parametrize(
    ("mpirun", "n", "copies"),
    [("openmpi", 2, "single copy"), ("openmpi", 3, "own copies"), ("mpich", 2, "single copy")],
    indirect=["mpirun"],
)
def test_all_ranks_leave_after_the_same_step(mpirun: Any, n: int, copies: str) -> None:
    code, output = mpirun(n, PROGRAM, copies)
    assert code == 0, output
    assert output == "every check passed\n"


@open_mpi_alone
@pytest.mark.parametrize(("times", "expected"), [(1, "on all ranks"), (2, "at once")])
def test_uncaught_it_ends_all_ranks(mpirun: Any, times: int, expected: str) -> None:
    program = f"""
import signal, sys
import numpy as np
import disttensor as keras
signal.signal(signal.SIGINT, signal.default_int_handler)
rank = keras.distributed.rank()
def press(batch, logs):
    try:
        for _ in range({times} if rank == 1 and batch == 2 else 0):
            signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("at once", flush=True)
        raise
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
try:
    model.fit(np.ones((90, 3)), np.ones(90), 9, verbose=0,
              callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=press)])
except KeyboardInterrupt:
    if {times} == 1:
        steps = int(model.optimizer.iterations.numpy())
        assert keras.distributed.communicator().all_gather_object(steps) == [3, 3]
        if rank == 0:
            print("on all ranks", flush=True)
        keras.distributed.barrier()  # the first that raises ends all
    raise
"""
    code, output = mpirun(2, program)
    assert code == 130, output
    assert "interrupted; this ends the whole job" in output
    assert output.count(expected) == 1, output
    assert "Traceback" not in output
