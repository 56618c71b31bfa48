"""Sums over ranks within the machine code of a plan, on real ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mpi.libraries import on_ranks, open_mpi_alone

HERE = Path(__file__).parent


@on_ranks(2, 3, 8, mpich=[3])
def test_native_sum(mpirun, n):
    code, output = mpirun(n, HERE / "native_sum_program.py", str(n))
    assert code == 0, output
    assert output.count("every check passed") == 1, output


@pytest.mark.parametrize(
    ("mpirun", "n", "most"),
    [("openmpi", 2, 8), ("openmpi", 3, 8), ("openmpi", 4, 2), ("openmpi", 8, 8), ("mpich", 3, 8)],
    indirect=["mpirun"],
)
def test_whoever_is_there_combines(mpirun, n, most):
    """In machine code up to `most` parts."""
    code, output = mpirun(n, HERE / "late_program.py", str(n), str(most))
    assert code == 0, output
    assert output.count("every check passed") == 1, output


TRAINING = """
import os, signal, sys
import numpy as np
import disttensor as keras
from disttensor import distributed
from tests.mpi.what_ranks_do import limit_collectives_when, ranks
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64), keras.layers.Dense(3)])
model.compile("sgd", "mse")
if sys.argv[1] == "SIGSTOP" and distributed.rank() != 1:
    others = ranks[0], ranks[2]
    limit_collectives_when(lambda: ranks[1].is_suspended and all(rank.waits(step=21) for rank in others))


class End(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        if batch == 20:
            (plan,) = self.model.train_function.plans
            assert len(plan._program.parts) == 1, plan._program.parts  # with its sums, one piece of machine code
            if distributed.rank() == 1:
                os.kill(os.getpid(), getattr(signal, sys.argv[1]))


model.fit(np.ones((6000, 8), "f4"), np.ones((6000, 3), "f4"), batch_size=12, verbose=0, callbacks=[End()])
"""


def test_a_rank_is_killed_while_others_wait_for_it_in_a_plan(mpirun):
    code, _ = mpirun(3, TRAINING, "SIGKILL")
    assert code != 0


@open_mpi_alone
def test_a_rank_is_stopped_while_others_wait_for_it_in_a_plan(mpirun):
    code, output = mpirun(3, TRAINING, "SIGSTOP")
    assert code != 0
    assert "It waits for rank 1." in output, output


MODELS = """
import gc
import numpy as np
import disttensor as keras
from disttensor import distributed
from disttensor.distributed import background, world

x, y = np.ones((64, 64), "f4"), np.ones((64, 1), "f4")
free = []
for _ in range(4):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(4096, activation="relu"), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(x, y, batch_size=32, epochs=2, verbose=0)
    del model
    gc.collect()
    probe = distributed.communicator().shared_empty((1,), "f4")  # what is given back is counted by the next request
    free.append(sum(size for _, size in world.data_group()._memory._free))
    del probe
assert not background._channel_of(world.data_group())._started.reducer.natives
assert free[1] == free[2] == free[3], free  # the first two make what all use; what a model had is free again
"""


@open_mpi_alone
def test_a_plan_that_is_gone_leaves_no_shared_memory_behind(mpirun):
    code, output = mpirun(2, MODELS)
    assert code == 0, output
