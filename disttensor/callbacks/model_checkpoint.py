"""`ModelCheckpoint`: the weights, saved while training runs."""

from __future__ import annotations

import os
from typing import Any

from disttensor.callbacks.callback import Logs, print_on_main
from disttensor.callbacks.monitor import MonitorCallback
from disttensor.errors import ArgumentError
from disttensor.saving.weights import SUFFIX


class ModelCheckpoint(MonitorCallback):
    """Saves the weights of the model, after every epoch or every so many batches.

    Rank 0 writes, and no rank goes on before the file is complete. Folders that are missing are made. Load a file with
    `Model.load_weights`.

    Parameters
    ----------
    filepath : path
        Ends in ``.safetensors``. May contain ``{epoch}`` (counted from 1), ``{batch}`` (likewise, if `save_freq` is a
        number) and names of metrics, with formats: ``"{epoch:02d}-{val_loss:.2f}.safetensors"``.
    monitor : str, default "val_loss"
        A name in the logs, for `save_best_only`.
    verbose : {0, 1}, default 0
        Whether to tell of each file.
    save_best_only : bool, default False
        Save only when the metric is better than in all files before.
    save_weights_only : bool, default True
        Keras's default is False, the whole model; this version saves weights, and refuses False.
    mode : {"auto", "min", "max"}, default "auto"
        Whether less or more is better; "auto" asks the metric.
    save_freq : "epoch" or int, default "epoch"
        After each epoch, or after every so many training batches, counted across epochs. (With
        ``compile(steps_per_execution=n)`` after the execution in which so many batches are full.)
    initial_value_threshold : float, optional
        With `save_best_only`, the value to beat for the first file.

    Raises
    ------
    ArgumentError
        If an argument does not fit; while training, if `filepath` names a metric that the logs lack.
    """

    state_attributes = ("best", "_epoch", "_batches_since_save", "_last_batch")
    on_all_ranks = True

    def __init__(
        self,
        filepath: Any,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = True,
        mode: str = "auto",
        save_freq: Any = "epoch",
        initial_value_threshold: float | None = None,
    ):
        super().__init__(monitor, mode, best=initial_value_threshold)
        self.filepath = os.fspath(filepath)
        if not save_weights_only or self.filepath.endswith(".keras"):
            raise ArgumentError(
                "ModelCheckpoint saves weights, not whole models: leave save_weights_only out and give a filepath that "
                f"ends in {SUFFIX!r}, got {self.filepath!r}."
            )
        if not self.filepath.endswith(SUFFIX):
            raise ArgumentError(f"ModelCheckpoint: filepath must end in {SUFFIX!r}, got {self.filepath!r}.")
        is_count = isinstance(save_freq, int) and not isinstance(save_freq, bool) and save_freq > 0
        if save_freq != "epoch" and not is_count:
            raise ArgumentError(f"ModelCheckpoint: save_freq must be 'epoch' or a positive int, got {save_freq!r}.")
        self.verbose = verbose
        self.save_best_only = save_best_only
        self.save_freq = save_freq
        self._epoch = 0
        self._batches_since_save = 0
        self._last_batch = -1

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Note the epoch."""
        self._epoch = epoch
        self._last_batch = -1

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Save if it is time."""
        if self.save_freq == "epoch":
            return
        self._batches_since_save += batch - self._last_batch
        self._last_batch = batch
        if self._batches_since_save >= self.save_freq:
            self._batches_since_save = 0
            self._save(logs, batch=batch + 1)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Save if it is time."""
        if self.save_freq == "epoch":
            self._save(logs)

    def _save(self, logs: Logs, **names: int) -> None:
        path = self._path({**(logs or {}), **names, "epoch": self._epoch + 1})
        if self.save_best_only and not self._is_best(logs):
            return
        self.model.save_weights(path)
        if self.verbose:
            print_on_main(f"Epoch {self._epoch + 1}: weights saved to {path}")

    def _is_best(self, logs: Logs) -> bool:
        """Whether to save; without the metric, to be safe, yes."""
        value = self.current(logs)
        if value is None:
            return True
        if not self.is_improvement(value, self.best):
            return False
        self.best = value
        return True

    def _path(self, names: dict[str, Any]) -> str:
        try:
            return self.filepath.format(**names)
        except KeyError as error:
            raise ArgumentError(
                f"ModelCheckpoint: filepath {self.filepath!r} names {error}, which the logs lack; they hold "
                f"{', '.join(sorted(names))}."
            ) from None
