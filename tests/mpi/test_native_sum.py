"""Sums over ranks within the machine code of a plan, on real ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_native_sum(mpirun, n):
    code, output = mpirun(n, HERE / "native_sum_program.py", str(n))
    assert code == 0, output
    assert output.count("every check passed") == 1, output


TRAINING = """
import os, signal, sys
import numpy as np
import disttensor as keras
from disttensor import distributed
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64), keras.layers.Dense(3)])
model.compile("sgd", "mse")


class End(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 20:
            (plan,) = self.model.train_function.plans
            assert len(plan._program) == 1, plan._program  # with its sums, one piece of machine code
            if distributed.rank() == 1:
                os.kill(os.getpid(), getattr(signal, sys.argv[1]))


model.fit(np.ones((6000, 8), "f4"), np.ones((6000, 3), "f4"), batch_size=12, verbose=0, callbacks=[End()])
"""


def test_a_rank_is_killed_while_others_wait_for_it_in_a_plan(mpirun):
    code, _ = mpirun(3, TRAINING, "SIGKILL", timeout=60)
    assert code != 0


def test_a_rank_is_stopped_while_others_wait_for_it_in_a_plan(mpirun):
    code, output = mpirun(3, TRAINING, "SIGSTOP", timeout=60, env={"DISTTENSOR_TIMEOUT": "3"})
    assert code != 0
    assert "It waits for rank 1." in output, output
