"""What every rank of `test_watchdog` runs: a training in which rank 1 does at step 4 what the argument says.

The limit, of a second, begins when rank 1 has done it and all others wait.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import disttensor as keras
from disttensor import config, distributed, layers
from disttensor.ops.registry import apply, operator
from tests.mpi.what_ranks_do import limit_collectives_when, ranks, wait_until

DEED = sys.argv[1]
HANGS = "hangs"
"""A file in memory by which others see that rank 1 does; it is made in the line in which it is found then."""
comm = distributed.communicator()
group = comm.split(0)


def hang_in_loader() -> None:
    """An endless loop of Python."""
    os.memfd_create(HANGS)
    while True:
        pass


def hang_in_regular_expression() -> None:
    """One call that never ends, and never gives Python's lock away."""
    os.memfd_create(HANGS)
    re.match(r"(a+)+$", "a" * 60 + "b")


def hang_in_deadlock() -> None:
    """A lock that nobody will release."""
    lock = threading.Lock()
    lock.acquire()
    _ = os.memfd_create(HANGS), lock.acquire()


def batches() -> Iterator[Any]:
    """Batches of 12 rows; trouble in the fourth."""
    rng = np.random.default_rng(0)
    for number in range(8):
        if comm.rank == 1 and number >= 3:
            if DEED == "loader":
                hang_in_loader()
            elif DEED == "regular expression":
                hang_in_regular_expression()
            elif DEED == "slow":
                time.sleep(1.5)
        yield rng.normal(size=(12, 8)).astype("float32"), rng.integers(0, 4, 12)


@operator()
def suspends(out: np.ndarray, x: np.ndarray) -> None:
    """`x`; rank 1 is suspended in the fourth step, as soon as others can read that it computes it."""
    np.copyto(out, x)
    if comm.rank == 1 and trouble.batch == 3:
        wait_until(lambda: ranks[1].status.get("doing") == "computing, step 4")
        os.kill(os.getpid(), signal.SIGSTOP)


@suspends.infer
def _(x: Any) -> Any:
    return x


class Suspending(layers.Layer):
    """Hands its input on."""

    def call(self, x: Any) -> Any:
        """`x`."""
        return x + 0 * apply(suspends, [keras.ops.stop_gradient(x)], {})


def suspend_in_collective() -> None:
    """Suspend this process as soon as others can read that it waits for them."""
    wait_until(lambda: ranks[1].waits(step=4))
    os.kill(os.getpid(), signal.SIGSTOP)


class Trouble(keras.callbacks.Callback):
    """Trouble in a callback."""

    batch = -1

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Do what was asked for."""
        self.batch = batch
        if batch == 2 and DEED == "slow":
            config.set_collective_timeout(6)  # less than the last five steps take
        if comm.rank == 1 and batch == 3:
            if DEED == "deadlock":
                hang_in_deadlock()
            elif DEED == "suspended":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif DEED == "suspended in a collective":
                threading.Thread(target=suspend_in_collective, daemon=True).start()
            elif DEED == "other collective":
                group.barrier()
        elif batch == 3 and DEED == "suspended in a collective":
            wait_until(lambda: ranks[1].is_suspended)


def has_done_it() -> bool:
    """Whether rank 1 is where it stays."""
    if DEED.startswith("suspended"):
        return ranks[1].is_suspended
    if DEED == "other collective":
        return ranks[1].waits(step=3)
    silent = time.monotonic() - ranks[1].status.get("written", float("inf"))
    return ranks[1].has_file(HANGS) and (DEED != "regular expression" or silent > 2)


def suspend_rank_0_for_a_while() -> None:
    """Rank 0 waits in a collective, and is suspended, for longer than the limit, though not for so long besides."""
    config.set_collective_timeout(4)
    if comm.rank == 1:
        wait_until(lambda: bool(ranks[0].status.get("waiting")))
        os.kill(ranks[0].process, signal.SIGSTOP)
        time.sleep(6)
        os.kill(ranks[0].process, signal.SIGCONT)
    comm.barrier()
    config.set_collective_timeout(600)


if DEED == "suspended for a while":
    suspend_rank_0_for_a_while()
elif DEED not in ("nothing", "slow") and comm.rank != 1:
    others = [rank for number, rank in enumerate(ranks) if number != 1]
    limit_collectives_when(lambda: has_done_it() and all(rank.waits(step=4) for rank in others))
trouble = Trouble()
suspending = [Suspending()] if DEED == "suspended in compute" else []
model = keras.Sequential([keras.Input((8,)), *suspending, layers.Dense(4, activation="softmax")])
model.compile("sgd", "sparse_categorical_crossentropy")
model.fit(batches(), epochs=1, steps_per_epoch=8, verbose=0, callbacks=[trouble])
if comm.rank == 0:
    print(f"trained, limit {config.collective_timeout():g}")
