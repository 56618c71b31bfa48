"""The training that the campaign disturbs: a small network with everything that has state, on the digits.

``program.py FOLDER STEPS [KIND RANK STEP OPERATION]``: what happened is written to the folder, one JSON line a step and
rank (``trace-RANK``), and at the end the weights' digest and the history (``result.json``). In its first start, rank
RANK does KIND at STEP: raises, exits, trains on NaN, or kills itself before the OPERATION-th operation on the disk from
there on. What comes from outside may come late, and must find a training all the same: for that the rank waits, until
the folder says so (``struck``), or until it has been sent a signal itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

LAUNCHED = time.monotonic()

import numpy as np  # noqa: E402

import disttensor as dt  # noqa: E402
from disttensor import distributed, layers  # noqa: E402
from disttensor.checkpoint import disk  # noqa: E402

FOLDER, STEPS = Path(sys.argv[1]), int(sys.argv[2])
KIND, RANK, STEP, OPERATION = (sys.argv[3], *map(int, sys.argv[4:7])) if len(sys.argv) > 3 else ("", -1, -1, 0)
START = int(os.environ.get("DISTTENSOR_RESTART_COUNT", "0"))
BATCH = 50  # 30 steps an epoch
UNTIL_STRUCK, UNTIL_TOLD = "waits until it is struck", "waits until it is told"
told, teller = os.pipe()
os.set_blocking(teller, False)
signal.set_wakeup_fd(teller)  # Python writes the number of each signal to it that has a handler, such as those of fit()


class Trace(dt.callbacks.Callback):
    """Writes down each step, and does what the campaign asks for."""

    def __init__(self) -> None:
        super().__init__()
        self._file = (FOLDER / f"trace-{distributed.rank()}").open("a", buffering=1)
        self._operations = 0

    def _step(self) -> int:
        return int(self.model.optimizer.iterations)

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        """Fail, if it is this rank's turn."""
        if START or distributed.rank() != RANK:
            return
        if KIND == "slow rank" and self._step() >= STEP:
            time.sleep(0.02)  # an undisturbed step takes a few milliseconds
        if self._step() == STEP:
            if KIND == UNTIL_STRUCK:
                while not (FOLDER / "struck").exists():
                    time.sleep(0.001)
                return
            if KIND == UNTIL_TOLD:
                os.read(told, 1)
                return
            if KIND == "kill -9 in a save, then go on":
                disk.observer = self._count
                return
            self._note(fault=KIND)
            if KIND == "exception":
                raise ValueError("a fault of the campaign")
            if KIND == "sys.exit":
                sys.exit(7)
            if KIND == "os._exit":
                os._exit(9)
            if KIND == "waits for ever":
                time.sleep(1000)
            if KIND == "waits for Ctrl-C":
                while signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # as after the first one
                    time.sleep(0.01)
            if KIND == "bit flip":
                self.model.trainable_variables[0].memory.view(np.uint8).reshape(-1)[0] ^= 1
            if KIND == "nan":
                kernel = self.model.trainable_variables[0]
                kernel.assign(np.full(kernel.shape, np.nan, "float32"))

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        """Write down that it is done."""
        self._note()

    def _count(self, operation: str, path: str) -> None:
        """Called before every operation on the disk, mostly on the thread that saves."""
        self._operations += 1
        if self._operations == OPERATION:
            self._note(fault=f"{KIND}: {operation} {path}")
            os.kill(os.getpid(), signal.SIGKILL)

    def _note(self, **more: object) -> None:
        self.note(self._step(), **more)

    def note(self, step: int, **more: object) -> None:
        """Write something down, with the time."""
        said = {"start": START, "step": step, "time": time.monotonic(), "pid": os.getpid(), **more}
        self._file.write(json.dumps(said) + "\n")


def main() -> None:
    """Train, and write the result."""
    dt.utils.set_random_seed(0)
    (x, y), _ = dt.datasets.digits.load_data()
    x = x.reshape(len(x), -1).astype("float32") / 16
    model = dt.Sequential(
        [
            dt.Input((64,)),
            layers.Dense(64, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(10, activation="softmax"),
        ]
    )
    is_other = KIND == "other learning rate" and distributed.rank() == RANK
    optimizer = dt.optimizers.Adam(0.002 if is_other else 0.001)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    trace = Trace()
    if is_other:
        trace.note(0, fault=KIND)
    if distributed.rank() == 0:
        with (FOLDER / "starts").open("a") as file:
            file.write(json.dumps({"start": START, "launched": LAUNCHED}) + "\n")
    history = model.fit(
        x[: 30 * BATCH],
        y[: 30 * BATCH],
        BATCH,
        epochs=-(-STEPS // 30),
        verbose=0,
        callbacks=[
            trace,
            dt.callbacks.TerminateOnNaN(raise_error=True),
            dt.callbacks.BackupAndRestore(FOLDER / "backup", save_freq=5),
        ],
    )
    if distributed.rank() == 0:
        digest = hashlib.sha256()
        for variable in [*model.variables, *model.optimizer.variables]:
            digest.update(np.ascontiguousarray(variable.numpy()).tobytes())
        text = json.dumps({"digest": digest.hexdigest(), "history": history.history})
        (FOLDER / "result.json").write_text(text)


main()
