"""`StepProfile`: what ``disttensor plan`` needs to know of a training step."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from disttensor import distributed
from disttensor.callbacks.callback import Callback, Logs, print_on_main
from disttensor.distributed.rows import packet_bytes
from disttensor.errors import ArgumentError
from disttensor.layers import BatchNormalization
from disttensor.saving.files import write_atomically
from disttensor.tensor import Variable

FORMAT = "disttensor.step.2"
_WARM_UP = 3


class StepProfile(Callback):
    """Measures a training step in one process and writes it to a file, from which ``disttensor plan`` predicts how it
    scales.

    The file holds the median time from one batch to the next, the rows of the batch, and the sizes of the gradients as
    ranks would send them: compressed, if the optimizer is a `CompressedOptimizer`, and of tables the rows that a batch
    looks up. What a `ShardedOptimizer` gathers beside is not counted.
    Train for some tens of steps, alone on the machine, with as many threads as each rank shall have
    (`config.set_threads`).

    Parameters
    ----------
    filepath : path
        A JSON file.
    batch_size : int
        The one given to `fit`.

    Raises
    ------
    ArgumentError
        In `fit`, with several processes, whose steps contain what is to be predicted; or if fewer than five steps were
        measured.

    Examples
    --------
    >>> import disttensor as keras
    >>> callback = keras.callbacks.StepProfile("step.json", batch_size=64)
    """

    def __init__(self, filepath: Any, batch_size: int):
        super().__init__()
        if type(batch_size) is not int or batch_size < 1:
            raise ArgumentError(f"StepProfile: batch_size must be a positive int, got {batch_size!r}.")
        self.filepath = os.fspath(filepath)
        self.batch_size = batch_size
        self._times: list[float] = []
        self._last: float | None = None

    def on_train_begin(self, logs: Logs = None) -> None:
        """Require that this process is alone."""
        if distributed.size() > 1:
            raise ArgumentError(
                f"StepProfile measures a step of one process, but there are {distributed.size()}. Run the program "
                "alone, and let `disttensor plan` predict the step of many."
            )
        if self.model.steps_per_execution > 1:
            raise ArgumentError("StepProfile measures single steps; compile with steps_per_execution=1.")
        self._times.clear()

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Do not count what happens between epochs."""
        self._last = None

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Take the time since the batch before."""
        now = time.perf_counter()
        if self._last is not None:
            self._times.append(now - self._last)
        self._last = now

    def on_train_end(self, logs: Logs = None) -> None:
        """Write the file."""
        import statistics

        times = self._times[_WARM_UP:]
        if len(times) < 5:
            raise ArgumentError(
                f"StepProfile measured {len(times)} steps after the first {_WARM_UP}; it needs 5, better 50."
            )
        synchronized = [
            layer
            for layer in self.model._walk()
            if isinstance(layer, BatchNormalization) and layer.trainable and layer.synchronized is not False
        ]
        seconds = statistics.median(times)
        # The backward pass goes from the last weight to the first.
        weights = list(reversed(self.model.trainable_weights))
        optimizer = self.model.optimizer
        profile = {
            "format": FORMAT,
            "seconds": seconds,
            "rows": self.batch_size,
            "gradients": [optimizer.bytes_sent(v) for v in weights],
            "packets": [self._packet(v) if optimizer.sends_rows else 0 for v in weights],
            "small_messages": 1 + 2 * len(synchronized),
        }
        write_atomically(self.filepath, json.dumps(profile, indent=1).encode())
        print_on_main(f"StepProfile: {1e3 * seconds:.3g} ms a step; now run: disttensor plan {self.filepath}")

    def _packet(self, variable: Variable) -> int:
        """Bytes of the rows of a table that a batch looks up; 0 for other variables."""
        graphs = [plan.graph for plan in self.model.train_function.plans]
        return max((packet_bytes(graph, variable) for graph in graphs if variable in graph.updates), default=0)
