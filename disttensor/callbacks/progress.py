"""`Progress`: a line for each epoch."""

from __future__ import annotations

import time

from disttensor import distributed
from disttensor.callbacks.callback import Callback, Logs


class Progress(Callback):
    """Prints how far training is, on rank 0."""

    def __init__(self, verbose: int = 1):
        super().__init__()
        self.verbose = verbose

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Print the metrics."""
        if distributed.is_main():
            shown = " - ".join(f"{name}: {value:.4f}" for name, value in (logs or {}).items())
            print(
                f"Epoch {epoch + 1}/{self.params['epochs']} - {time.monotonic() - self._start:.1f}s - {shown}",
                flush=True,
            )
