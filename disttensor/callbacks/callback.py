"""`Callback`: what is told of every stage of training."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from disttensor import distributed

Logs = dict[str, Any] | None
Hook = TypeVar("Hook", bound=Callable[..., None])


def now_and_then(hook: Hook) -> Hook:
    """Mark a hook of batches that need not be called for each of them (a decorator).

    Several batches may be run before it is, as with ``steps_per_execution``. Where all hooks of training batches are
    marked, `fit` may run some 100 ms of steps, on several ranks half a second, without Python between them, and so may
    `evaluate`. In `evaluate` ranks need not stop at the same batches, so a marked hook of test batches must not
    communicate.

    Examples
    --------
    >>> from disttensor.callbacks import Callback, now_and_then
    >>> class Clock(Callback):
    ...     @now_and_then
    ...     def on_train_batch_end(self, batch, logs=None):
    ...         print(f"{batch + 1} batches are done")
    """
    hook.now_and_then = True  # type: ignore[attr-defined]
    return hook


class Callback:
    """Base of callbacks; override the hooks that matter.

    Every rank calls every hook, with the same logs. So decisions made from logs are the same everywhere; what writes
    files or prints asks `disttensor.distributed.is_main` first. Setting ``self.model.stop_training`` on any rank stops
    all of them after the same batch.

    With ``compile(steps_per_execution=n)`` the hooks of batches are called once for n batches: those of the beginning
    with the number of the first of them, those of the end with the number of the last. Without any such hook, or with
    those marked `now_and_then`, training takes less time where steps are short.

    Attributes
    ----------
    model : Model
    params : dict
        "verbose", "epochs" and "steps" (None if unknown).
    state_attributes : tuple of str
        Names of attributes that change while training: numbers, strings, None, arrays, and lists and dicts of them. A
        checkpoint keeps them (see `BackupAndRestore`). For anything else override `get_state` and `set_state`.
    on_all_ranks : bool
        Whether `fit` requires that all ranks have it, since it communicates, or changes what is trained. Default False:
        one that only prints or writes may be there on some ranks.
    """

    state_attributes: tuple[str, ...] = ()
    on_all_ranks = False

    def __init__(self) -> None:
        self.params: dict[str, Any] = {}
        self._model: Any = None

    @property
    def model(self) -> Any:
        """The model that is being trained."""
        return self._model

    def set_params(self, params: dict[str, Any]) -> None:
        """Called before training with its parameters."""
        self.params = params

    def set_model(self, model: Any) -> None:
        """Called before training with the model."""
        self._model = model

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback: `state_attributes` and their values."""
        return {name: getattr(self, name) for name in self.state_attributes}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take back what `get_state` returned; called after `on_train_begin`, when training goes on."""
        for name, value in state.items():
            setattr(self, name, value)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Before an epoch, counted from 0."""

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """After an epoch and its validation; `logs` holds all metrics, those of validation with ``val_`` before."""

    def on_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """The same as `on_train_batch_begin`."""

    def on_batch_end(self, batch: int, logs: Logs = None) -> None:
        """The same as `on_train_batch_end`."""

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Before a training batch, counted from 0 in each epoch."""
        self.on_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """After a training batch; `logs` holds the metrics of the epoch so far."""
        self.on_batch_end(batch, logs)

    def on_test_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Before a batch of `evaluate`."""

    def on_test_batch_end(self, batch: int, logs: Logs = None) -> None:
        """After a batch of `evaluate`."""

    def on_predict_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Before a batch of `predict`."""

    def on_predict_batch_end(self, batch: int, logs: Logs = None) -> None:
        """After a batch of `predict`; ``logs["outputs"]`` holds this rank's outputs."""

    def on_train_begin(self, logs: Logs = None) -> None:
        """Before `fit` trains."""

    def on_train_end(self, logs: Logs = None) -> None:
        """After `fit` has trained."""

    def on_test_begin(self, logs: Logs = None) -> None:
        """Before `evaluate`, also when `fit` validates."""

    def on_test_end(self, logs: Logs = None) -> None:
        """After `evaluate`."""

    def on_predict_begin(self, logs: Logs = None) -> None:
        """Before `predict`."""

    def on_predict_end(self, logs: Logs = None) -> None:
        """After `predict`."""


class LambdaCallback(Callback):
    """A callback made of functions.

    Parameters
    ----------
    on_epoch_begin, on_epoch_end, on_train_begin, on_train_end, on_train_batch_begin, on_train_batch_end : callable
        Each optional; called with the arguments of the hook of that name. Any other hook may be given too.
    """

    def __init__(
        self,
        on_epoch_begin: Callable[..., Any] | None = None,
        on_epoch_end: Callable[..., Any] | None = None,
        on_train_begin: Callable[..., Any] | None = None,
        on_train_end: Callable[..., Any] | None = None,
        on_train_batch_begin: Callable[..., Any] | None = None,
        on_train_batch_end: Callable[..., Any] | None = None,
        **kwargs: Callable[..., Any],
    ):
        super().__init__()
        given = {
            "on_epoch_begin": on_epoch_begin,
            "on_epoch_end": on_epoch_end,
            "on_train_begin": on_train_begin,
            "on_train_end": on_train_end,
            "on_train_batch_begin": on_train_batch_begin,
            "on_train_batch_end": on_train_batch_end,
            **kwargs,
        }
        for name, function in given.items():
            if not name.startswith("on_") or not hasattr(Callback, name):
                raise TypeError(f"LambdaCallback knows no hook {name!r}.")
            if function is not None:
                setattr(self, name, function)


ERASE_LINE = "\r\x1b[2K"


def can_draw() -> bool:
    """Whether a line on the output can be written again and again.

    Not with several ranks: Open MPI gives them a terminal of its own, even if their output goes to a file.
    """
    return distributed.size() == 1 and sys.stdout.isatty()


def print_on_main(text: str) -> None:
    """Print a line on rank 0, in the place of a bar that is being drawn."""
    if distributed.is_main():
        print((ERASE_LINE if can_draw() else "") + text, flush=True)
