"""`EarlyStopping`: end training when a metric no longer gets better."""

from __future__ import annotations

from typing import Any

from disttensor.callbacks.callback import Logs, print_on_main
from disttensor.callbacks.monitor import MonitorCallback


class EarlyStopping(MonitorCallback):
    """Stops `fit` when a metric has not improved for a number of epochs.

    Parameters
    ----------
    monitor : str, default "val_loss"
        A name in the logs.
    min_delta : float, default 0
        Smaller changes are no improvement.
    patience : int, default 0
        How many epochs without improvement are too many.
    verbose : {0, 1}, default 0
        Whether to tell of stopping and restoring.
    mode : {"auto", "min", "max"}, default "auto"
        Whether less or more is better; "auto" asks the metric.
    baseline : float, optional
        Patience only starts anew with values better than this one.
    restore_best_weights : bool, default False
        Whether the model ends with the weights of its best epoch (better than `baseline` or not).
    start_from_epoch : int, default 0
        Epochs before this one, counted from 0, are not looked at.

    Attributes
    ----------
    stopped_epoch, best_epoch : int
        Counted from 0; `stopped_epoch` is 0 if training was not stopped.

    Examples
    --------
    >>> import disttensor as keras
    >>> callback = keras.callbacks.EarlyStopping("loss", patience=2, restore_best_weights=True)
    """

    state_attributes = ("best", "best_epoch", "stopped_epoch", "wait", "_best_weights")
    on_all_ranks = True

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0,
        patience: int = 0,
        verbose: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ):
        super().__init__(monitor, mode, min_delta)
        self.patience = patience
        self.verbose = verbose
        self.baseline = baseline
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = start_from_epoch
        self._reset()

    def _reset(self) -> None:
        self.best = None
        self.best_epoch = 0
        self.stopped_epoch = 0
        self.wait = 0
        self._best_weights: list[Any] | None = None

    def on_train_begin(self, logs: Logs = None) -> None:
        """Start anew."""
        self._reset()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Look at the metric and stop if it is time."""
        value = self.current(logs)
        if value is None or epoch < self.start_from_epoch:
            return
        self.wait += 1
        if self.is_improvement(value, self.best):
            self.best, self.best_epoch = value, epoch
            if self.restore_best_weights:
                self._best_weights = self.model.get_weights()
            if self.is_improvement(value, self.baseline):
                self.wait = 0
        elif self.wait >= self.patience:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs: Logs = None) -> None:
        """Restore the best weights, if asked to."""
        if self.verbose and self.stopped_epoch:
            print_on_main(f"Epoch {self.stopped_epoch + 1}: early stopping")
        if self._best_weights is not None:
            if self.verbose:
                print_on_main(f"Restoring the weights of the best epoch, {self.best_epoch + 1}")
            self.model.set_weights(self._best_weights)
            self._best_weights = None
