"""What every rank of `test_watchdog` runs: a training in which rank 1 does at step 4 what the argument says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import disttensor as keras
from disttensor import config, distributed, layers
from launch import stacks

DEED = sys.argv[1]
comm = distributed.communicator()
group = comm.split(0)


def hang_in_loader() -> None:
    """An endless loop of Python."""
    while True:
        pass


def hang_in_regular_expression() -> None:
    """One call that never ends, and never gives Python's lock away."""
    re.match(r"(a+)+$", "a" * 60 + "b")


def hang_in_deadlock() -> None:
    """A lock that nobody will release."""
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def batches() -> Iterator[Any]:
    """Batches of 12 rows; trouble in the fourth."""
    rng = np.random.default_rng(0)
    for number in range(8):
        if comm.rank == 1 and number == 3:
            if DEED == "loader":
                hang_in_loader()
            elif DEED == "regular expression":
                hang_in_regular_expression()
        if DEED == "slow" and comm.rank == 1:
            time.sleep(0.4)
        yield rng.normal(size=(12, 8)).astype("float32"), rng.integers(0, 4, 12)


class Heavy(layers.Layer):
    """Hands its input on, and computes for a second."""

    def call(self, x: Any) -> Any:
        """`x`."""
        square = product = keras.convert_to_tensor(np.full((2000, 2000), 1e-3, np.float32))
        for _ in range(4):
            product = keras.ops.matmul(product, square)
        return x + 0 * keras.ops.mean(product)


def suspend_once(waits: bool) -> None:
    """Suspend this process as soon as others can read of it that it computes, or that it waits for them."""
    (status,) = (file for file in Path("/proc/self/fd").iterdir() if stacks.STATUS in os.path.realpath(file))
    seen = stacks.read_status(status)
    while seen["step"] < 4 or not seen["doing"].startswith("computing") or bool(seen["waiting"]) != waits:
        time.sleep(0.01)
        seen = stacks.read_status(status)
    os.kill(os.getpid(), signal.SIGSTOP)


class Trouble(keras.callbacks.Callback):
    """Trouble in a callback."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Do what was asked for, when every rank has compiled what it needs."""
        if batch == 2 and DEED != "nothing":
            config.set_collective_timeout(4 if DEED == "suspended in compute" else 2)
        if comm.rank == 1 and batch == 3:
            if DEED == "deadlock":
                hang_in_deadlock()
            elif DEED == "suspended":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif DEED in ("suspended in compute", "suspended in a collective"):
                threading.Thread(target=suspend_once, args=(DEED.endswith("collective"),), daemon=True).start()
            elif DEED == "other collective":
                time.sleep(0.5)  # so that the other rank's collective is the first that takes too long
                group.barrier()
        elif batch == 3 and DEED == "suspended in a collective":
            time.sleep(2)


if DEED == "suspended for a while":
    if comm.rank == 0:
        me = os.getpid()
        shell = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -STOP {me}; sleep 3.5; kill -CONT {me}"])
    else:
        time.sleep(4.8)
    config.set_collective_timeout(3)  # of 1.3 s that count, or more where ranks and shell have to wait for a core
    comm.barrier()
    config.set_collective_timeout(600)
    if comm.rank == 0:
        shell.wait()
heavy = [Heavy()] if DEED == "suspended in compute" else []
model = keras.Sequential([keras.Input((8,)), *heavy, layers.Dense(4, activation="softmax")])
model.compile("sgd", "sparse_categorical_crossentropy")
model.fit(batches(), epochs=1, steps_per_epoch=8, verbose=0, callbacks=[Trouble()])
if comm.rank == 0:
    print(f"trained, limit {config.collective_timeout():g}")
