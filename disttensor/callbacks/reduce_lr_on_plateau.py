"""`ReduceLROnPlateau`: smaller steps when a metric no longer gets better."""

from __future__ import annotations

from disttensor.callbacks.callback import Logs, print_on_main
from disttensor.callbacks.monitor import MonitorCallback
from disttensor.errors import ArgumentError


class ReduceLROnPlateau(MonitorCallback):
    """Multiplies the learning rate by a factor when a metric has not improved for a number of epochs.

    The learning rate is added to the logs of every epoch as "learning_rate". Nothing is traced again.

    Parameters
    ----------
    monitor : str, default "val_loss"
        A name in the logs.
    factor : float, default 0.1
        Between 0 and 1.
    patience : int, default 10
        How many epochs without improvement are too many.
    verbose : {0, 1}, default 0
        Whether to tell of changes.
    mode : {"auto", "min", "max"}, default "auto"
        Whether less or more is better; "auto" asks the metric.
    min_delta : float, default 1e-4
        Smaller changes are no improvement.
    cooldown : int, default 0
        After a change, how many epochs to wait before counting again.
    min_lr : float, default 0
        The learning rate does not fall below this.
    """

    state_attributes = ("best", "wait", "cooldown_counter")
    on_all_ranks = True

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ):
        super().__init__(monitor, mode, min_delta)
        if not 0 < factor < 1:
            raise ArgumentError(f"ReduceLROnPlateau: factor must lie between 0 and 1, got {factor!r}.")
        self.factor = factor
        self.patience = patience
        self.verbose = verbose
        self.cooldown = cooldown
        self.min_lr = min_lr
        self._reset()

    def _reset(self) -> None:
        self.best = None
        self.wait = 0
        self.cooldown_counter = 0

    def on_train_begin(self, logs: Logs = None) -> None:
        """Start anew."""
        self._reset()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Look at the metric and reduce the learning rate if it is time."""
        if logs is not None:
            logs["learning_rate"] = float(self.model.optimizer.learning_rate)
        value = self.current(logs)
        if value is None:
            return
        if self.cooldown_counter:
            self.cooldown_counter -= 1
            self.wait = 0
        if self.is_improvement(value, self.best):
            self.best = value
            self.wait = 0
        elif not self.cooldown_counter:
            self.wait += 1
            if self.wait >= self.patience:
                self._reduce(epoch)

    def _reduce(self, epoch: int) -> None:
        optimizer = self.model.optimizer
        old = float(optimizer.learning_rate)
        new = max(old * self.factor, self.min_lr)
        if new >= old:
            return
        optimizer.learning_rate = new
        if float(optimizer.learning_rate) == old:  # `new` is the lower bound, which was rounded when it was set
            return
        self.cooldown_counter = self.cooldown
        self.wait = 0
        if self.verbose:
            print_on_main(f"Epoch {epoch + 1}: ReduceLROnPlateau sets the learning rate to {new:.6g}")
