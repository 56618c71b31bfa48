"""`History`: the metrics of every epoch."""

from __future__ import annotations

from disttensor.callbacks.callback import Callback, Logs


class History(Callback):
    """Keeps what `fit` returns.

    Attributes
    ----------
    epoch : list of int
    history : dict of str to list of float
        The values of each metric, one an epoch.
    """

    state_attributes = ("epoch", "history")

    def __init__(self) -> None:
        super().__init__()
        self.epoch: list[int] = []
        self.history: dict[str, list[float]] = {}

    def on_train_begin(self, logs: Logs = None) -> None:
        """Start anew."""
        self.epoch = []
        self.history = {}

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Note the metrics."""
        self.epoch.append(epoch)
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(value)
